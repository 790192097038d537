"""DINOv2's training step as it is described (arXiv 2304.07193 and its code), without any of the product's computations.

Dense and slow: dictionaries of tensors, one crop size at a time, whole matrices of targets, AdamW by hand, any float
type. Only containers of numbers (the slot, the step's values) are the product's. A slot is what a GPU has in DINOv2.

Legend: B crops of a group, C channels, N tokens, D width, H heads, E width of a head, I images of a slot, M masked
tokens, Z bottleneck width, K prototypes, G patches along a side.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from support.slots import masks_of
from torch import Tensor

from heliostat.objectives import SlotBatch, StepValues

Weights = dict[str, Tensor]
Keep = tuple[Tensor, Tensor]
"""Crops that the attention and the feed-forward branch of a block compute."""

STUDENT_TEMPERATURE, CENTRE_MOMENTUM, SINKHORN_ITERATIONS = 0.1, 0.9, 3
KOLEO_WEIGHT, PATCH_EMBED_LR = 0.1, 0.2
BETA_1, BETA_2, ADAM_EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class PlainSettings:
    """What the weights' names and shapes do not tell."""

    heads: int
    layer_decay: float
    centring: Literal["sinkhorn_knopp", "softmax"] = "sinkhorn_knopp"
    koleo_group: int | None = None
    koleo_neighbours: int = 1
    clip_norm: float = 3.0


@dataclass
class PlainRun:
    """Student, teacher, moments and centres of a run."""

    settings: PlainSettings
    student: Weights
    teacher: Weights
    steps: int = 0
    centres: dict[str, Tensor] = field(default_factory=dict)
    _means: dict[str, Tensor] = field(default_factory=dict)
    """Of the step before: the centre moves when it is asked for next."""

    def __post_init__(self) -> None:
        self._first = {name: torch.zeros_like(value) for name, value in self.student.items()}
        self._second = {name: torch.zeros_like(value) for name, value in self.student.items()}

    def step(self, slots: Sequence[SlotBatch], values: StepValues) -> tuple[dict[str, float], dict[str, float]]:
        """Loss terms (means over the slots) and norms of the gradients of a step, which is made."""
        targets = self._targets(slots, values.teacher_temperature)
        leaves = {name: value.detach().requires_grad_() for name, value in self.student.items()}
        terms = [self._losses(leaves, slot, *each) for slot, each in zip(slots, targets, strict=True)]
        means = {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}
        found = torch.autograd.grad(means["loss"], list(leaves.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
        }
        norms = self._clip(gradients)
        self.steps += 1
        for name, gradient in gradients.items():
            self._adamw(name, gradient, values)
        for name, mine in self.teacher.items():
            self.teacher[name] = values.ema_momentum * mine + (1 - values.ema_momentum) * self.student[name]
        return {name: value.item() for name, value in means.items()}, norms

    def centre_now(self) -> dict[str, Tensor]:
        """The centres that the next step will use."""
        return {name: self._moved(name) for name in self._means}

    def _targets(self, slots: Sequence[SlotBatch], temperature: float) -> list[tuple[Tensor, Tensor]]:
        cls_logits, masked_logits = [], []
        for slot in slots:
            cls_BD, patches_BND = backbone(self.teacher, slot.global_crops, self.settings.heads)
            cls_logits.append(head(self.teacher, "dino_head", cls_BD))
            masked_logits.append(head(self.teacher, patch_head(self.teacher), patches_BND[masks_of(slot)]))
        cls = self._distributions("dino", cls_logits, temperature)
        masked = self._distributions("ibot", masked_logits, temperature)
        return list(zip(cls, masked, strict=True))

    def _distributions(self, kind: str, logits: list[Tensor], temperature: float) -> Sequence[Tensor]:
        if self.settings.centring == "sinkhorn_knopp":
            whole = sinkhorn_knopp(torch.cat(logits), temperature)
            return list(torch.split(whole, [len(each) for each in logits]))
        centre = self._moved(kind) if kind in self._means else torch.zeros_like(logits[0][:1])
        self.centres[kind] = centre
        # Every slot weighs the same, whatever its number of tokens.
        self._means[kind] = torch.stack([each.mean(0, keepdim=True) for each in logits if len(each)]).mean(0)
        return [torch.softmax((each - centre) / temperature, -1) for each in logits]

    def _moved(self, kind: str) -> Tensor:
        return CENTRE_MOMENTUM * self.centres[kind] + (1 - CENTRE_MOMENTUM) * self._means[kind]

    def _losses(self, weights: Weights, slot: SlotBatch, cls_p: Tensor, masked_p: Tensor) -> dict[str, Tensor]:
        heads = self.settings.heads
        whole, patches_BND = backbone(weights, slot.global_crops, heads, masks_of(slot), keeps(slot, 0))
        local, _ = backbone(weights, slot.local_crops, heads, None, keeps(slot, 1))
        images = len(whole) // 2
        first_p, second_p = cls_p.split(images)
        first, second = head(weights, "dino_head", whole).split(images)
        local_crops = head(weights, "dino_head", local).split(images)
        pairs = 2 * len(local_crops) + 2
        of_global = (entropy(second_p, first).mean() + entropy(first_p, second).mean()) / pairs
        of_local = sum(
            (entropy(p, crop).mean() for p in (first_p, second_p) for crop in local_crops), start=torch.zeros(())
        )
        of_local = of_local / pairs
        ibot = torch.zeros((), dtype=whole.dtype)
        rows = masked_p.split(masks_of(slot).sum(1).tolist())
        for crop, p in enumerate(rows):
            if len(p):
                logits = head(weights, patch_head(weights), patches_BND[crop][masks_of(slot)[crop]])
                ibot = ibot + entropy(p, logits).mean() / len(masks_of(slot))
        koleo = sum((self._koleo(crop) for crop in whole.split(images)), start=torch.zeros(()))
        return {
            "dino_global": of_global,
            "dino_local": of_local,
            "dino": of_global + of_local,
            "ibot": ibot,
            "koleo": koleo,
            "loss": of_global + of_local + ibot + KOLEO_WEIGHT * koleo,
        }

    def _koleo(self, cls_ID: Tensor) -> Tensor:
        logs = []
        for members in cls_ID.split(self.settings.koleo_group or len(cls_ID)):
            unit = F.normalize(members, dim=-1, eps=1e-8)
            cosines = unit @ unit.T - 3 * torch.eye(len(unit), dtype=unit.dtype)  # nobody is its own neighbour
            nearest = cosines.argsort(dim=1, descending=True)[:, : self.settings.koleo_neighbours]
            logs += [torch.log((unit - unit[place] + 1e-8).norm(dim=1) + 1e-8) for place in nearest.T]
        return -torch.cat(logs).mean()

    def _clip(self, gradients: Weights) -> dict[str, float]:
        norms = {}
        for module in {name.split(".")[0]: None for name in gradients}:
            mine = [name for name in gradients if name.startswith(f"{module}.")]
            norms[module] = math.sqrt(sum(float(gradients[name].square().sum()) for name in mine))
            factor = min(1.0, self.settings.clip_norm / (norms[module] + 1e-6))
            for name in mine:
                gradients[name] = gradients[name] * factor
        return norms

    def _adamw(self, name: str, gradient: Tensor, values: StepValues) -> None:
        lr = values.lr * lr_factor(name, self.settings.layer_decay, depth_of(self.student))
        if "last_layer" in name and values.prototypes_frozen:
            lr = 0.0
        exempt = name.endswith(".bias") or "norm" in name or "gamma" in name
        weight = self.student[name] * (1 - lr * (0.0 if exempt else values.weight_decay))
        self._first[name] = BETA_1 * self._first[name] + (1 - BETA_1) * gradient
        self._second[name] = BETA_2 * self._second[name] + (1 - BETA_2) * gradient**2
        mean = self._first[name] / (1 - BETA_1**self.steps)
        square = self._second[name] / (1 - BETA_2**self.steps)
        self.student[name] = weight - lr * mean / (square.sqrt() + ADAM_EPS)


def depth_of(weights: Mapping[str, Tensor]) -> int:
    """Number of blocks."""
    return 1 + max(int(found.group(1)) for found in map(re.compile(r"blocks\.(\d+)\.").search, weights) if found)


def lr_factor(name: str, decay: float, depth: int) -> float:
    """Layer-wise decay: layer 0 is what comes before the blocks, the last one what comes after; heads have none."""
    if not name.startswith("backbone."):
        return 1.0
    layer = depth + 1
    if "blocks." in name:
        layer = int(name.split("blocks.")[1].split(".")[0]) + 1
    elif any(part in name for part in ("cls_token", "pos_embed", "mask_token", "register_tokens", "patch_embed")):
        layer = 0
    return decay ** (depth + 1 - layer) * (PATCH_EMBED_LR if "patch_embed" in name else 1.0)


def patch_head(weights: Mapping[str, Tensor]) -> str:
    """The head of the masked patches: its own, or the shared one."""
    return "ibot_head" if any(name.startswith("ibot_head.") for name in weights) else "dino_head"


def keeps(slot: SlotBatch, group: int) -> list[Keep] | None:
    """The kept crops of one group, per block."""
    if slot.drops is None:
        return None
    return [(attention[group], feed_forward[group]) for attention, feed_forward in slot.drops]


def entropy(p: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of each row."""
    return -(p * torch.log_softmax(logits / STUDENT_TEMPERATURE, -1)).sum(-1)


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float) -> Tensor:
    """Rows that sum to 1 over prototypes that are used alike, of all tokens of a step."""
    scaled = logits / temperature
    matrix_KM = torch.exp(scaled - scaled.max()).T
    prototypes, tokens = matrix_KM.shape
    matrix_KM = matrix_KM / matrix_KM.sum()
    for _ in range(SINKHORN_ITERATIONS):
        matrix_KM = matrix_KM / matrix_KM.sum(1, keepdim=True) / prototypes
        matrix_KM = matrix_KM / matrix_KM.sum(0, keepdim=True) / tokens
    return (matrix_KM * tokens).T


def head(weights: Mapping[str, Tensor], name: str, x_MD: Tensor) -> Tensor:
    """Logits of a projection head."""
    for layer in (0, 2, 4):
        x_MD = x_MD @ weights[f"{name}.mlp.{layer}.weight"].T + weights[f"{name}.mlp.{layer}.bias"]
        if layer < 4:
            x_MD = 0.5 * x_MD * (1 + torch.erf(x_MD / math.sqrt(2)))
    z_MZ: Tensor = x_MD / x_MD.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    if f"{name}.last_layer.weight" in weights:
        prototypes_KZ = weights[f"{name}.last_layer.weight"]
    else:
        rows_KZ = weights[f"{name}.last_layer.weight_v"]
        prototypes_KZ = weights[f"{name}.last_layer.weight_g"] * rows_KZ / rows_KZ.norm(dim=1, keepdim=True)
    return z_MZ @ prototypes_KZ.T


def backbone(
    weights: Mapping[str, Tensor],
    crops_BCHW: Tensor,
    heads: int,
    masks_BN: Tensor | None = None,
    kept: Sequence[Keep] | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalised class tokens (B, D) and patches (B, N, D) of crops of one size."""
    w = {name.removeprefix("backbone."): value for name, value in weights.items() if name.startswith("backbone.")}
    kernel_DCPP = w["patch_embed.proj.weight"]
    crops_BCHW = crops_BCHW.to(kernel_DCPP.dtype)
    side = kernel_DCPP.shape[-1]
    tiles = crops_BCHW.unfold(2, side, side).unfold(3, side, side)
    rows, columns = tiles.shape[2:4]
    x_BND = torch.einsum("bchwpq,dcpq->bhwd", tiles, kernel_DCPP).flatten(1, 2) + w["patch_embed.proj.bias"]
    if masks_BN is not None:
        x_BND = torch.where(masks_BN[..., None], w["mask_token"], x_BND)
    x_BND = torch.cat([w["cls_token"].expand(len(x_BND), 1, -1), x_BND], 1)
    x_BND = x_BND + positions(w["pos_embed"], rows, columns, "register_tokens" in w)
    registers = w.get("register_tokens", x_BND[:1, :0])
    x_BND = torch.cat([x_BND[:, :1], registers.expand(len(x_BND), -1, -1), x_BND[:, 1:]], 1)
    for index in range(depth_of(w)):
        block = {name.removeprefix(f"blocks.{index}."): value for name, value in w.items()}
        keep = kept[index] if kept is not None else (torch.arange(len(x_BND)), torch.arange(len(x_BND)))
        for branch, chosen in zip((attention, feed_forward), keep, strict=True):
            added = torch.zeros_like(x_BND)
            added[chosen] = branch(block, x_BND[chosen], heads) * (len(x_BND) / len(chosen))
            x_BND = x_BND + added
    x_BND = norm(w, "norm", x_BND)
    return x_BND[:, 0], x_BND[:, 1 + registers.shape[1] :]


def positions(table_1ND: Tensor, rows: int, columns: int, has_registers: bool) -> Tensor:
    """The position embedding for a grid, the class token's first."""
    side = math.isqrt(table_1ND.shape[1] - 1)
    if rows == columns == side:
        return table_1ND
    grid = table_1ND[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if has_registers:
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
    else:
        factors = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
    return torch.cat([table_1ND[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def norm(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Layer normalisation."""
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A linear layer."""
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attention(w: Mapping[str, Tensor], x_BND: Tensor, heads: int) -> Tensor:
    """The attention branch of a block."""
    qkv = linear(w, "attn.qkv", norm(w, "norm1", x_BND)).unflatten(-1, (3, heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    shares = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
    return w["ls1.gamma"] * linear(w, "attn.proj", (shares @ v).transpose(1, 2).flatten(2))


def feed_forward(w: Mapping[str, Tensor], x_BND: Tensor, heads: int) -> Tensor:
    """The feed-forward branch of a block, with GELU or SwiGLU."""
    x_BND = norm(w, "norm2", x_BND)
    if "mlp.fc1.weight" in w:
        hidden = linear(w, "mlp.fc1", x_BND)
        out = linear(w, "mlp.fc2", 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))
    else:
        gate, value = linear(w, "mlp.w12", x_BND).chunk(2, -1)
        out = linear(w, "mlp.w3", gate * torch.sigmoid(gate) * value)
    return w["ls2.gamma"] * out

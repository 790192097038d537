"""The training step of DINOv2 once more, as plainly as it can be written: the peer of bench_step.py.

The same mathematics from the same weights, written from the paper and the specification and sharing no computation with
the product: one forward pass per group of equally large crops, no packing; logits of all tokens at once; targets by
Sinkhorn-Knopp on the dense matrix or by softmax centring, in fp32, kept. The operators are torch's usual ones, fused
where torch fuses them. Only arithmetic on a few numbers is the product's: schedules and the rules of the parameter
groups. Parameters have the product's names, so that weights can be copied.

Legend: B crops of a group, I images, N tokens, D width, H heads, E width of a head, M masked tokens, Z bottleneck
width, K prototypes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat.config.model import ModelConfig
from heliostat.config.pretrain import PretrainRecipe
from heliostat.models.block import DropPlan
from heliostat.objectives.groups import GroupRule, parameter_groups
from heliostat.objectives.networks import SlotBatch
from heliostat.objectives.schedules import values_at

_LAYER_NORM_EPS = 1e-6
_KOLEO_EPS = 1e-8
_POSITION_OFFSET = 0.1


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        count, tokens, dim = x_BND.shape
        qkv = self.qkv(x_BND).reshape(count, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        out_BHNE = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        projected: Tensor = self.proj(out_BHNE.transpose(1, 2).reshape(count, tokens, dim))
        return projected


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x_BND)))
        return out


class _Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND * self.gamma


class _Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.attn = _Attention(dim, config.heads)
        self.ls1 = _Scale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.mlp = _Mlp(dim, int(dim * config.ffn_ratio))
        self.ls2 = _Scale(dim)

    def forward(self, x_BND: Tensor, keep: tuple[Tensor, Tensor] | None) -> Tensor:
        for branch, index in zip((self._attend, self._feed_forward), keep or (None, None), strict=True):
            if index is None:
                x_BND = x_BND + branch(x_BND)
            else:
                residual = branch(x_BND[index]).to(x_BND.dtype)
                x_BND = torch.index_add(x_BND, 0, index, residual, alpha=x_BND.shape[0] / len(index))
        return x_BND

    def _attend(self, x_BND: Tensor) -> Tensor:
        out: Tensor = self.ls1(self.attn(self.norm1(x_BND)))
        return out

    def _feed_forward(self, x_BND: Tensor) -> Tensor:
        out: Tensor = self.ls2(self.mlp(self.norm2(x_BND)))
        return out


class _PatchEmbed(nn.Module):
    def __init__(self, dim: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_px, patch_px)


class _Backbone(nn.Module):
    def __init__(self, config: ModelConfig, grid: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.grid = grid
        self.patch_embed = _PatchEmbed(dim, config.patch_px)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid * grid, dim))
        self.mask_token = nn.Parameter(torch.empty(1, dim))
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)

    def forward(self, crops: Tensor, mask_BN: Tensor | None, drops: DropPlan | None, group: int) -> Tensor:
        patches = self.patch_embed.proj(crops)
        side = patches.shape[-1]
        x_BND = patches.flatten(2).transpose(1, 2)
        if mask_BN is not None:
            x_BND = torch.where(mask_BN[:, :, None], self.mask_token.to(x_BND.dtype), x_BND)
        x_BND = torch.cat([self.cls_token.expand(len(x_BND), -1, -1), x_BND], dim=1) + self._positions(side)
        for index, block in enumerate(self.blocks):
            x_BND = block(x_BND, (drops[index][0][group], drops[index][1][group]) if drops else None)
        out: Tensor = self.norm(x_BND)
        return out

    def _positions(self, side: int) -> Tensor:
        if side == self.grid:
            return self.pos_embed
        dim = self.pos_embed.shape[-1]
        grid = self.pos_embed[:, 1:].reshape(1, self.grid, self.grid, dim).permute(0, 3, 1, 2)
        factor = (side + _POSITION_OFFSET) / self.grid
        small = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], small.permute(0, 2, 3, 1).reshape(1, side * side, dim)], dim=1)


class _Prototypes(nn.Module):
    def __init__(self, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(prototypes, bottleneck))


class _Head(nn.Module):
    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last_layer = _Prototypes(bottleneck, prototypes)

    def forward(self, x_MD: Tensor) -> Tensor:
        # The operator behind torch.nn.utils.weight_norm: one kernel forward, one backward.
        weight_KZ = torch._weight_norm(self.last_layer.weight_v, self.last_layer.weight_g, 0)
        return F.linear(F.normalize(self.mlp(x_MD), dim=-1), weight_KZ)


class _Network(nn.Module):
    def __init__(self, recipe: PretrainRecipe) -> None:
        super().__init__()
        model, objective = recipe.model, recipe.objective
        sizes = (model.embed_dim, objective.head_hidden, objective.head_bottleneck, objective.prototypes)
        self.backbone = _Backbone(model, recipe.augmentation.global_px // model.patch_px)
        self.dino_head = _Head(*sizes)
        if objective.ibot_head != "shared":
            self.ibot_head = _Head(*sizes)
        self._is_shared = objective.ibot_head == "shared"

    def logits(self, cls_BD: Tensor, masked_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Of class tokens and of masked patches, each head called once."""
        if not self._is_shared:
            return self.dino_head(cls_BD), self.ibot_head(masked_MD)
        cls_BK, masked_MK = self.dino_head(torch.cat([cls_BD, masked_MD])).split([len(cls_BD), len(masked_MD)])
        return cls_BK, masked_MK


class ReferenceStep:
    """Student, teacher and optimizer, advanced a step at a time on one slot.

    Args:
        recipe: with one slot per step, a plain ViT without registers, and heads of equal sizes or a shared one.
        weights: the state dict of a product's network, to start both from.
        device: where to compute.
    """

    def __init__(self, recipe: PretrainRecipe, weights: dict[str, Tensor], device: str = "cpu") -> None:
        self._recipe = recipe
        self.student, self.teacher = _Network(recipe), _Network(recipe).requires_grad_(False)
        for network in (self.student, self.teacher):
            network.load_state_dict(weights)
            network.to(device)
        prototypes = recipe.objective.prototypes
        self.centres = {name: torch.zeros(prototypes, device=device) for name in ("dino", "ibot")}
        groups = parameter_groups(self.student, recipe.model, recipe.training)
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)

    def run(self, step: int, slot: SlotBatch) -> tuple[dict[str, float], dict[str, float]]:
        """One step; loss terms, and gradient norms per sub-module before clipping."""
        training = self._recipe.training
        values = values_at(step, training, self._recipe.objective)
        with torch.autocast(slot.global_crops.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
            targets = self._targets(slot, values.teacher_temperature)
            terms = self._losses(slot, *targets)
        terms["loss"].backward()
        norms = {
            name: float(nn.utils.clip_grad_norm_(module.parameters(), training.clip_norm))
            for name, module in self.student.named_children()
        }
        for group in self._optimizer.param_groups:
            rule: GroupRule = group["rule"]
            group["lr"], group["weight_decay"] = rule.lr(values), rule.weight_decay(values)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._average(values.ema_momentum)
        return {name: float(term.detach()) for name, term in terms.items()}, norms

    @torch.no_grad()
    def _targets(self, slot: SlotBatch, temperature: float) -> tuple[Tensor, Tensor]:
        objective = self._recipe.objective
        tokens = self.teacher.backbone(slot.global_crops, None, None, 0)
        cls_BK, masked_MK = self.teacher.logits(tokens[:, 0], tokens[:, 1:][slot.masks])
        if objective.centring == "softmax":
            return self._centred("dino", cls_BK, temperature), self._centred("ibot", masked_MK, temperature)
        iterations = objective.sinkhorn_iterations
        return sinkhorn_knopp(cls_BK, temperature, iterations), sinkhorn_knopp(masked_MK, temperature, iterations)

    def _centred(self, name: str, logits_MK: Tensor, temperature: float) -> Tensor:
        """Targets by the centre of the steps before; it then moves towards the mean of these logits."""
        centre_K = self.centres[name]
        targets_MK = F.softmax((logits_MK.float() - centre_K) / temperature, dim=-1)
        centre_K.lerp_(logits_MK.float().mean(0), 1 - self._recipe.objective.centre_momentum)
        return targets_MK

    def _losses(self, slot: SlotBatch, cls_targets_BK: Tensor, masked_targets_MK: Tensor) -> dict[str, Tensor]:
        assert slot.masks is not None
        objective = self._recipe.objective
        images = len(slot.global_crops) // 2
        whole = self.student.backbone(slot.global_crops, slot.masks, slot.drops, 0)
        local = self.student.backbone(slot.local_crops, None, slot.drops, 1)
        logits = self.student.logits(torch.cat([whole[:, 0], local[:, 0]]), whole[:, 1:][slot.masks])
        log_cls, log_masked = (F.log_softmax(each.float() / objective.student_temperature, dim=-1) for each in logits)
        crops = log_cls.split(images)
        first, second = cls_targets_BK.chunk(2)
        pairs = [(first, crops[1]), (second, crops[0])]
        pairs += [(target, crop) for crop in crops[2:] for target in (first, second)]
        dino = torch.stack([-(target * crop).sum(-1).mean() for target, crop in pairs]).mean()
        per_token = -(masked_targets_MK * log_masked).sum(-1)
        weights = (1 / slot.masks.sum(1).clamp(min=1))[:, None].expand_as(slot.masks)[slot.masks]
        ibot = (per_token * weights).sum() / len(slot.masks)
        koleo = _koleo(whole[:images, 0]) + _koleo(whole[images:, 0])
        loss = objective.dino_weight * dino + objective.ibot_weight * ibot + objective.koleo_weight * koleo
        return {"loss": loss, "dino": dino, "ibot": ibot, "koleo": koleo}

    @torch.no_grad()
    def _average(self, momentum: float) -> None:
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        torch._foreach_mul_(teacher, momentum)
        torch._foreach_add_(teacher, student, alpha=1 - momentum)


def sinkhorn_knopp(logits_MK: Tensor, temperature: float, iterations: int) -> Tensor:
    """Targets (M, K): the dense matrix, its prototypes and its tokens scaled in turn, in fp32."""
    q_KM = torch.exp(logits_MK.float() / temperature).T
    prototypes, tokens = q_KM.shape
    q_KM /= q_KM.sum()
    for _ in range(iterations):
        q_KM /= q_KM.sum(dim=1, keepdim=True)
        q_KM /= prototypes
        q_KM /= q_KM.sum(dim=0, keepdim=True)
        q_KM /= tokens
    q_KM *= tokens
    return q_KM.T


def _koleo(cls_ID: Tensor) -> Tensor:
    with torch.autocast(cls_ID.device.type, enabled=False):
        x_ID = F.normalize(cls_ID.float(), dim=-1, eps=_KOLEO_EPS)
        with torch.no_grad():
            nearest_I = (x_ID @ x_ID.T).fill_diagonal_(-1).argmax(dim=1)
        return -torch.log(F.pairwise_distance(x_ID, x_ID[nearest_I], eps=_KOLEO_EPS) + _KOLEO_EPS).mean()

"""Student and teacher: a backbone with its heads, and what each computes for a slot.

Legend: B images of a slot, L local crops per image, N patches of a global crop, M masked tokens, D width of the
backbone, Z bottleneck width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from heliostat.config.distill_objective import DistillObjectiveConfig, FeaturesConfig, LabelsConfig
from heliostat.config.network import NetworkRecipe
from heliostat.config.objective import ObjectiveConfig
from heliostat.data.draws import stream_key
from heliostat.models.backbones import Backbone, new_backbone
from heliostat.models.block import DropPlan
from heliostat.models.heads import ProjectionHead
from heliostat.models.positions import RopeJitter
from heliostat.models.student_heads import FeatureHead, LabelHead
from heliostat.models.tokens import WantedTokens
from heliostat.objectives.cross_entropy import Layer, Targets, compute_dtype
from heliostat.objectives.features import feature_loss, whitened
from heliostat.objectives.gram import gram_loss, resize_features
from heliostat.objectives.koleo import koleo_loss
from heliostat.objectives.labels import label_loss, token_loss
from heliostat.objectives.losses import GLOBAL_CROPS, dino_losses, ibot_loss
from heliostat.objectives.teacher_view import Shown, TeacherView, Vectors, Widths


def terms_of(objective: ObjectiveConfig) -> tuple[str, ...]:
    """What a slot's loss tells; ``dino`` is the sum of its two parts, and nothing but ``loss`` is weighted."""
    names = ["loss", *(("dino", "dino_global", "dino_local", "ibot") if objective.has_heads else ()), "koleo", "gram"]
    if isinstance(objective, DistillObjectiveConfig):
        features, labels = objective.features, objective.labels
        names += ["features"] * bool(features.weight) + ["features_cls"] * bool(features.weight * features.class_weight)
        names += ["label"] * bool(labels.weight) + ["label_token", "label_teacher"] * objective.has_label_token
    return tuple(names)


def widths_of(recipe: NetworkRecipe) -> Widths:
    """Of what a network says as a teacher."""
    objective = recipe.objective
    bottlenecks = objective.dino_head_sizes.bottleneck, objective.ibot_head_sizes.bottleneck
    return Widths(*bottlenecks, recipe.model.embed_dim)


@dataclass(frozen=True, slots=True)
class SlotBatch:
    """Everything a slot's losses depend on, drawn and decoded beforehand."""

    global_crops: Tensor
    """(2 B, C, H, W): crop 1 of every image, then crop 2 of every image."""
    local_crops: Tensor
    """(L B, C, H', W'), crop-major too."""
    masks: Tensor | None
    """(2 B, N) bool; None, in distillation, hides no patch from students and compares them all."""
    drops: DropPlan | None = None
    """Which crops the student's branches compute; None computes all."""
    jitters: tuple[RopeJitter | None, RopeJitter | None] | None = None
    """Of the student's rotary coordinates: global crops, local crops."""
    gram_crops: Tensor | None = None
    """(2 B, C, H'', W''): the global crops at the Gram teacher's resolution, colours as they are."""
    ids: tuple[str, ...] = ()
    """Sample ids of the B images, to name them in errors."""
    kept: Tensor | None = None
    """(B, 2, F): what the teacher says of it, where that was kept from before (``kept_views.py``)."""
    labels: Tensor | None = None
    """(B,) int64: classes of the images, ``NO_LABEL`` for none; None where nothing learns them."""

    def check(self, images: int, patch_px: int) -> None:
        """Refuse a slot that would broadcast into another objective.

        Args:
            images: B.
            patch_px: side of a patch.

        Raises:
            ValueError: numbers of crops, or shape or type of the masks, do not fit together.
        """
        crops, local = len(self.global_crops), len(self.local_crops)
        if crops != GLOBAL_CROPS * images or not local or local % images:
            raise ValueError(
                f"a slot of {images} images has {GLOBAL_CROPS * images} global crops and a multiple of {images} local "
                f"ones, these are {crops} and {local}"
            )
        shape = (crops, math.prod(self.grid(patch_px)))
        if self.masks is not None and (self.masks.dtype != torch.bool or self.masks.shape != shape):
            raise ValueError(
                f"masks are bool of shape {shape}, these are {self.masks.dtype} of {tuple(self.masks.shape)}"
            )

    def grid(self, patch_px: int) -> tuple[int, int]:
        """Rows and columns of patches of a global crop."""
        height, width = self.global_crops.shape[2:]
        return height // patch_px, width // patch_px

    def compared(self, patch_px: int) -> Tensor:
        """Flat indices (into 2 B * N) of the patches that are compared, in row order, (M,)."""
        if self.masks is not None:
            return self.masks.flatten().nonzero().squeeze(1)
        patches = len(self.global_crops) * math.prod(self.grid(patch_px))
        return torch.arange(patches, device=self.global_crops.device)


@dataclass(frozen=True, slots=True)
class SlotTargets:
    """What the student is compared with on a slot."""

    cls: Targets | None
    """None where nothing is compared with prototypes; ``patches`` too."""
    patches: Targets | None
    gram: Tensor | None = None
    """(2 B, N, D): the Gram teacher's patches on the student's grid."""
    cls_tokens: Tensor | None = None
    """(2 B, E): the frozen teacher's own class tokens."""
    patch_tokens: Tensor | None = None
    """(M, E): its own patch tokens on the student's grid."""


class Network(nn.Module):
    """A backbone with its heads. ``forward`` is the student's whole work on a slot.

    One ``forward`` rather than several methods: ZeRO-3 gathers parameters only around module calls. With a shared head
    there is no ``ibot_head``.
    """

    def __init__(self, recipe: NetworkRecipe) -> None:
        super().__init__()
        model, objective = recipe.model, recipe.objective
        self.objective: ObjectiveConfig = objective
        self.backbone: Backbone = new_backbone(model, recipe.augmentation.global_px // model.patch_px)
        self.backbone.prepare(recipe.training.activation_checkpointing, recipe.training.compile)
        self._learns_by_heads_alone = recipe.training.learns_by_heads_alone
        self.shown = Shown((model.patch_px,), bottlenecks=objective.has_heads)
        """As a teacher: what its students need."""
        self.widths = widths_of(recipe)
        """Of what it says then."""
        self.terms = terms_of(objective)
        if objective.has_heads:
            self.dino_head = ProjectionHead(model.embed_dim, objective.dino_head_sizes, objective.prototype_layer)
            if objective.ibot_head != "shared":
                self.ibot_head = ProjectionHead(model.embed_dim, objective.ibot_head_sizes, objective.prototype_layer)
        if isinstance(objective, DistillObjectiveConfig):
            self._add_student_heads(model.embed_dim, objective)

    def _add_student_heads(self, dim: int, objective: DistillObjectiveConfig) -> None:
        features, labels, teacher_dim = objective.features, objective.labels, objective.teacher_width
        if features.weight:
            assert teacher_dim is not None  # noqa: S101 -- whoever sets the weight has to say it
            self.feature_head = FeatureHead(dim, teacher_dim, has_cls=features.class_weight > 0)
        if labels.weight:
            assert labels.classes is not None  # noqa: S101 -- likewise
            self.label_head = LabelHead(dim, labels.classes, teacher_dim if objective.has_label_token else None)

    @property
    def sub_modules(self) -> tuple[str, ...]:
        """Gradients are clipped per sub-module."""
        return tuple(name for name, _ in self.named_children())

    @property
    def heads(self) -> tuple[ProjectionHead, ...]:
        """Those that compare tokens with prototypes, each once."""
        if not self.objective.has_heads:
            return ()
        return (self.dino_head,) if self.patch_head is self.dino_head else (self.dino_head, self.patch_head)

    @property
    def patch_head(self) -> ProjectionHead:
        """The head of the masked patches."""
        return self.dino_head if self.objective.ibot_head == "shared" else self.ibot_head

    def init_weights(self, seed: int) -> None:
        """Draw the initial weights: a function of the run's seed alone."""
        for name in self.sub_modules:
            generator = torch.Generator().manual_seed(stream_key(seed, f"weights:{name}") % 2**63)
            getattr(self, name).init_weights(generator)

    @torch.no_grad()
    def view(self, slot: SlotBatch) -> TeacherView:
        """The teacher's work on a slot: unmasked global crops, no drops."""
        shown, compared = self.shown, slot.compared(self.backbone.config.patch_px)
        needs_patches = shown.bottlenecks or shown.patch_tokens
        (tokens,) = self.backbone([slot.global_crops], wanted=[compared if needs_patches else compared[:0]])
        maps = [self._as_seen(tokens.patches_MD, slot, each) for each in shown.patch_px if needs_patches]
        bottlenecks = own = None
        if shown.bottlenecks:
            cls, first = self._bottlenecks(tokens.cls_BD, maps[0])
            others = (self.patch_head.bottleneck(each) for each in maps[1:])
            bottlenecks = Vectors(cls.unflatten(0, (GLOBAL_CROPS, -1)), (first, *others))
        if shown.cls_tokens:
            own = Vectors(tokens.cls_BD.unflatten(0, (GLOBAL_CROPS, -1)), tuple(maps) if shown.patch_tokens else ())
        return TeacherView(bottlenecks, own)

    def _as_seen(self, patches_MD: Tensor, slot: SlotBatch, patch_px: int) -> Tensor:
        """All of a slot's patch tokens on the grid of a student whose patches have another size."""
        own_px = self.backbone.config.patch_px
        if patch_px == own_px:
            return patches_MD
        grid, wanted = slot.grid(own_px), slot.grid(patch_px)
        patches_BND = patches_MD.unflatten(0, (len(slot.global_crops), -1))
        return resize_features(patches_BND, *grid, *wanted).flatten(0, 1).to(patches_MD)

    def forward(self, slot: SlotBatch, targets: SlotTargets) -> dict[str, Tensor]:
        """The student's losses on a slot, by the names of ``terms_of``; the optimised one is ``loss``."""
        compared = slot.compared(self.backbone.config.patch_px)[: None if self.objective.compares_patches else 0]
        needs_all = targets.gram is not None
        wanted = replace(slot, masks=None).compared(self.backbone.config.patch_px) if needs_all else compared
        whole, *local = self._encoded(slot, wanted)
        patches_MD = whole.patches_MD.index_select(0, compared) if needs_all else whole.patches_MD
        terms = dict.fromkeys(self.terms[1:], whole.cls_BD.new_zeros((), dtype=torch.float32))
        if targets.cls is not None and targets.patches is not None:
            cls_BD = torch.cat([group.cls_BD for group in (whole, *local)])
            terms |= self._of_prototypes(slot, cls_BD, patches_MD, targets.cls, targets.patches)
        terms["koleo"] = _koleo(whole.cls_BD, self.objective)
        if targets.gram is not None:
            student_BND = whole.patches_MD.view(targets.gram.shape)
            terms["gram"] = gram_loss(student_BND, targets.gram, self.objective.gram.clip_negative)
        if isinstance(self.objective, DistillObjectiveConfig):
            if self.objective.features.weight:
                terms |= self._of_features(self.objective.features, whole.cls_BD, patches_MD, targets)
            if self.objective.labels.weight:
                terms |= self._of_labels(self.objective.labels, slot, whole, targets.cls_tokens)
        return {"loss": _weighted(terms, self.objective), **terms}

    def _encoded(self, slot: SlotBatch, wanted: Tensor) -> list[WantedTokens]:
        """Global crops, and local ones where they are compared."""
        none = wanted.new_empty(0)
        groups = [(slot.global_crops, slot.masks, wanted), (slot.local_crops, None, none)]
        crops, masks, rows = zip(*groups[: 1 + self.objective.has_heads], strict=True)
        jitters = None if slot.jitters is None else slot.jitters[: len(crops)]
        needs_registers = "label_head" in self._modules
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._learns_by_heads_alone):
            found: list[WantedTokens] = self.backbone(
                crops, masks, slot.drops, jitters, wanted=rows, registers=needs_registers
            )
        return found

    def _of_prototypes(
        self, slot: SlotBatch, cls_BD: Tensor, patches_MD: Tensor, of_cls: Targets, of_patches: Targets
    ) -> dict[str, Tensor]:
        """The terms of DINO and iBOT; ``cls_BD`` is of global and local crops."""
        temperature = self.objective.student_temperature
        images = len(slot.global_crops) // GLOBAL_CROPS
        cls_z, patches_z = self._bottlenecks(cls_BD, patches_MD)
        cls_layer, patch_layer = self.dino_head.last_layer, self.patch_head.last_layer
        shared = Layer.of(cls_layer, compute_dtype(cls_z)) if patch_layer is cls_layer else None
        dino = dino_losses(cls_z.unflatten(0, (-1, images)), cls_layer, of_cls, temperature, shared)
        weights_M = self._patch_weights(slot)
        ibot = ibot_loss(patches_z, patch_layer, of_patches, weights_M, len(slot.global_crops), temperature, shared)
        values = (dino.total, dino.of_global, dino.of_local, ibot)
        return dict(zip(("dino", "dino_global", "dino_local", "ibot"), values, strict=True))

    def _of_features(
        self, config: FeaturesConfig, cls_BD: Tensor, patches_MD: Tensor, targets: SlotTargets
    ) -> dict[str, Tensor]:
        """The terms of features, of global crops."""
        if targets.patch_tokens is None or targets.cls_tokens is None:
            raise ValueError("the targets were made without the teacher's tokens")
        patches_ME, cls_BE = self.feature_head(patches_MD, cls_BD)
        terms = {"features": feature_loss(patches_ME, targets.patch_tokens, config.beta)}
        if cls_BE is not None:
            terms["features_cls"] = feature_loss(cls_BE, targets.cls_tokens, config.beta)
        return terms

    def _of_labels(
        self, config: LabelsConfig, slot: SlotBatch, whole: WantedTokens, of_teacher_BE: Tensor | None
    ) -> dict[str, Tensor]:
        """The terms of labels, of global crops; the teacher's class tokens are whitened, whatever their size is."""
        if slot.labels is None:
            raise ValueError("the slot was made without labels")
        labels_B = slot.labels.repeat(GLOBAL_CROPS)
        token_BD = None if whole.registers_BRD is None else whole.registers_BRD[:, 0]
        taught_BE = None if of_teacher_BE is None else whitened(of_teacher_BE)
        mine, token, taught = self.label_head(whole.cls_BD, token_BD, taught_BE)
        terms = {"label": label_loss(mine, labels_B, config.smoothing)}
        if taught is not None and config.teacher != "none":
            terms["label_token"] = token_loss(token, taught, config.teacher, config.temperature, config.smoothing)
            terms["label_teacher"] = label_loss(taught, labels_B, 0.0)
        return terms

    def _patch_weights(self, slot: SlotBatch) -> Tensor:
        """1 / (compared patches of the crop), for each of them in row order, (M,)."""
        if slot.masks is not None:
            return mask_weights(slot.masks)
        patches = math.prod(slot.grid(self.backbone.config.patch_px))
        return torch.full((len(slot.global_crops) * patches,), 1 / patches, device=slot.global_crops.device)

    def _bottlenecks(self, cls_BD: Tensor, patches_MD: Tensor) -> tuple[Tensor, Tensor]:
        if self.patch_head is not self.dino_head:
            return self.dino_head.bottleneck(cls_BD), self.patch_head.bottleneck(patches_MD)
        cls_z, masked_z = self.dino_head.bottleneck(torch.cat([cls_BD, patches_MD])).split(
            [len(cls_BD), len(patches_MD)]
        )
        return cls_z, masked_z


def _weighted(terms: Mapping[str, Tensor], objective: ObjectiveConfig) -> Tensor:
    """The optimised sum; a term without weight is not in it, whatever it is."""
    weights = {
        "dino": objective.dino_weight,
        "ibot": objective.ibot_weight,
        "koleo": objective.koleo_weight,
        "gram": objective.gram.weight,
    }
    if isinstance(objective, DistillObjectiveConfig):
        features, labels = objective.features, objective.labels
        weights |= {"features": features.weight, "features_cls": features.weight * features.class_weight}
        weights |= {"label": labels.weight, "label_teacher": labels.weight, "label_token": labels.token_weight}
    weighted = [weight * terms[name] for name, weight in weights.items() if weight and name in terms]
    return sum(weighted[1:], start=weighted[0])


def _koleo(cls_BD: Tensor, objective: ObjectiveConfig) -> Tensor:
    """The two global crops' values are summed (the code does so; the paper speaks of the first crop only)."""
    crops = cls_BD.chunk(GLOBAL_CROPS)
    return sum(
        (koleo_loss(crop, objective.koleo_group, objective.koleo_neighbours) for crop in crops),
        start=cls_BD.new_zeros((), dtype=torch.float32),
    )


@torch.no_grad()
def gram_anchor(backbone: Backbone, slot: SlotBatch) -> Tensor:
    """The Gram teacher's work on a slot: patch features of its crops on the student's grid, (2 B, N, D)."""
    if slot.gram_crops is None:
        raise ValueError("the slot was made without Gram crops")
    (tokens,) = backbone([slot.gram_crops])
    patch_px = backbone.config.patch_px
    rows, columns, to_rows, to_columns = (
        side // patch_px for crops in (slot.gram_crops, slot.global_crops) for side in crops.shape[2:]
    )
    return resize_features(tokens.patches_BND, rows, columns, to_rows, to_columns)


def mask_weights(masks_BN: Tensor) -> Tensor:
    """1 / (masked tokens of the crop), for each masked token in row-major order, shape (M,)."""
    per_crop = masks_BN.sum(1, keepdim=True).clamp(min=1)
    return (1.0 / per_crop).expand_as(masks_BN)[masks_BN]

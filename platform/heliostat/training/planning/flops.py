"""Floating-point operations of a training step, from the recipe alone.

Matrix products count, two operations for a multiplication and an addition; all else is below a percent. A backward pass
through a linear layer has two products (for its input and for its weight), through attention four. What is packed,
masked and dropped is counted as it is computed: a branch costs the crops that it keeps, the last block the tokens that
are used afterwards.

``model`` is what the method needs: the numerator of MFU (PaLM, arXiv 2204.02311, appendix B). ``repeated`` is computed
again to save memory: blocks under full activation checkpointing, the teacher's logits at every iteration of
Sinkhorn-Knopp and once more in the loss. A flash kernel's own repetition of the scores is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from heliostat.config.distill_objective import DistillObjectiveConfig
from heliostat.config.model import ModelConfig
from heliostat.config.network import NetworkRecipe
from heliostat.config.objective import HeadSizes
from heliostat.training.planning import convolution
from heliostat.training.planning.shapes import student_layers

LOGIT_CHUNK_BYTES = 32 * 2**20
"""What ``objectives/cross_entropy.py`` computes at once; a test holds them equal."""
GLOBAL_CROPS = 2


@dataclass(frozen=True, slots=True)
class CropGroup:
    """Crops of one size in a slot, and what of them is computed."""

    crops: int
    patches: int
    tokens: int
    """Of a crop: patches, class token, registers."""
    kept: int
    """Crops that a branch computes under stochastic depth."""
    wanted_patches: float
    """Patches of all crops that are used after the last block."""


@dataclass(frozen=True, slots=True)
class StepFlops:
    """Operations of one step, over all its slots."""

    student_backbone: float
    """Forward and backward."""
    student_heads: float
    """Forward and backward, with prototypes and cross-entropy."""
    teacher_backbone: float
    teacher_heads: float
    gram: float
    """Gram teacher and Gram loss; 0 where it is off."""
    repeated_targets: float
    """The teacher's logits."""
    repeated_blocks: float
    """Of the students, under full activation checkpointing."""

    @property
    def repeated(self) -> float:
        """What is computed again to save memory."""
        return self.repeated_targets + self.repeated_blocks

    @property
    def model(self) -> float:
        """What the method needs."""
        return self.student_backbone + self.student_heads + self.teacher_backbone + self.teacher_heads + self.gram

    @property
    def executed(self) -> float:
        """What the machine computes."""
        return self.model + self.repeated


def student_groups(recipe: NetworkRecipe, masked: float | None = None) -> tuple[CropGroup, CropGroup]:
    """Global and local crops of the student on a slot.

    Args:
        recipe: Of the run.
        masked: Masked patches of the slot; None takes their expectation.
    """
    model, augmentation, images = recipe.model, recipe.augmentation, recipe.training.slot_batch
    masked = expected_masked(recipe) if masked is None else masked
    drop_path, registers = (model.drop_path, model.registers) if isinstance(model, ModelConfig) else (0.0, 0)
    shares = 1 - drop_path
    sizes = ((augmentation.global_px, GLOBAL_CROPS), (augmentation.local_px, augmentation.local_count))
    groups = []
    for side, per_image in sizes:
        patches, crops = (side // model.patch_px) ** 2, per_image * images
        tokens = 1 + registers + patches
        groups.append(CropGroup(crops, patches, tokens, max(1, int(crops * shares)), 0.0))
    whole, local = groups
    if not recipe.objective.has_heads:  # then nothing learns from local crops
        local = replace(local, crops=0, kept=0)
    needed = whole.crops * whole.patches if recipe.objective.anchoring is not None else masked
    # Where the first register learns labels, all of them are computed to the end, as if they were patches.
    used = registers if isinstance(recipe.objective, DistillObjectiveConfig) and recipe.objective.labels.weight else 0
    return (
        replace(whole, wanted_patches=needed + whole.crops * used),
        replace(local, wanted_patches=float(local.crops * used)),
    )


def expected_masked(recipe: NetworkRecipe) -> float:
    """Masked patches of a slot in expectation: ratios are spread evenly, and their patches rounded down."""
    objective = recipe.objective
    patches = (recipe.augmentation.global_px // recipe.model.patch_px) ** 2
    crops = int(GLOBAL_CROPS * recipe.training.slot_batch * objective.mask_probability)
    return crops * max(0.0, patches * sum(objective.mask_ratio) / 2 - 0.5)


def step_flops(recipe: NetworkRecipe, slots_per_worker: int, masked: float | None = None) -> StepFlops:
    """Operations of a whole step; what a round without a slot of its own computes is not among them.

    Args:
        recipe: Of the run.
        slots_per_worker: Whose logits Sinkhorn-Knopp keeps if they are few.
        masked: Masked patches of each slot; None takes their expectation.
    """
    slots = recipe.training.slots
    images = recipe.training.slot_batch
    masked = expected_masked(recipe) if masked is None else masked
    whole, local = student_groups(recipe, masked)
    seen_by_teacher = replace(whole, kept=whole.crops, wanted_patches=masked)
    student = _forward(recipe, [whole, local])
    heads = _Heads.of(recipe, masked)
    teacher_logits = heads.logits(GLOBAL_CROPS * images)
    student_rows = (GLOBAL_CROPS + recipe.augmentation.local_count) * images
    gram, anchor = _gram(recipe)
    learns_by_heads = recipe.training.learns_by_heads_alone
    recomputed = student.blocks if recipe.training.activation_checkpointing == "full" and not learns_by_heads else 0.0
    return StepFlops(
        student_backbone=slots * (student.all if learns_by_heads else student.and_backward),
        student_heads=slots
        * (
            3 * (heads.bottlenecks(student_rows) + heads.logits(student_rows) + heads.student_layers()) + heads.losses()
        ),
        teacher_backbone=slots * _forward(recipe, [seen_by_teacher]).all,
        teacher_heads=slots * (heads.bottlenecks(GLOBAL_CROPS * images) + teacher_logits),
        gram=slots * (gram + anchor),
        repeated_targets=slots * heads.target_passes(slots_per_worker),
        repeated_blocks=slots * recomputed,
    )


def target_flops(recipe: NetworkRecipe, slots_per_worker: int, masked: float) -> StepFlops:
    """Of a whole step, of a teacher whose bottleneck vectors are kept: its prototypes alone. Arguments as above."""
    slots, heads = recipe.training.slots, _Heads.of(recipe, masked)
    logits = slots * heads.logits(GLOBAL_CROPS * recipe.training.slot_batch)
    return StepFlops(0.0, 0.0, 0.0, logits, 0.0, slots * heads.target_passes(slots_per_worker), 0.0)


@dataclass(frozen=True, slots=True)
class _Forward:
    """A forward pass of a backbone."""

    embed: float
    """Of what takes pixels."""
    blocks: float
    between: float = 0.0
    """Of what is no block and takes features."""

    @property
    def all(self) -> float:
        return self.embed + self.blocks + self.between

    @property
    def and_backward(self) -> float:
        """With the backward pass; images need no gradient."""
        return 2 * self.embed + 3 * (self.blocks + self.between)


def _forward(recipe: NetworkRecipe, groups: Sequence[CropGroup]) -> _Forward:
    """Of global crops, and of local ones if they are there."""
    model, augmentation = recipe.model, recipe.augmentation
    if isinstance(model, ModelConfig):
        return _Forward(_embed(model, groups), _blocks(model, groups))
    crops = [
        (each.crops, px) for each, px in zip(groups, (augmentation.global_px, augmentation.local_px), strict=False)
    ]
    return _Forward(
        convolution.stem_flops(model, crops),
        convolution.block_flops(model, crops),
        convolution.halving_flops(model, crops),
    )


def _embed(model: ModelConfig, groups: Sequence[CropGroup]) -> float:
    patches = sum(group.crops * group.patches for group in groups)
    return 2.0 * patches * model.channels * model.patch_px**2 * model.embed_dim


def _blocks(model: ModelConfig, groups: Sequence[CropGroup], *, all_wanted: bool = False) -> float:
    """A forward pass through all blocks."""
    whole = _mixing(model, groups) + _token_wise(model, sum(group.kept * group.tokens for group in groups))
    used = sum(_used(group) for group in groups)
    last = whole if all_wanted else _mixing(model, groups) + _token_wise(model, used)
    return (model.depth - 1) * whole + last


def _used(group: CropGroup) -> float:
    """Tokens of kept crops that are used after the last block."""
    return group.kept + group.wanted_patches * group.kept / max(1, group.crops)


def _mixing(model: ModelConfig, groups: Sequence[CropGroup]) -> float:
    """Queries, keys, values and attention."""
    dim = model.embed_dim
    tokens = sum(group.kept * group.tokens for group in groups)
    pairs = sum(group.kept * group.tokens**2 for group in groups)
    return 6.0 * tokens * dim**2 + 4.0 * pairs * dim


def _token_wise(model: ModelConfig, tokens: float) -> float:
    """Attention's projection and the feed-forward layers."""
    products = 2 if model.ffn == "mlp" else 3
    return 2.0 * tokens * model.embed_dim * (model.embed_dim + products * model.ffn_hidden)


def _gram(recipe: NetworkRecipe) -> tuple[float, float]:
    """Of a slot: the Gram loss forward and backward, and the Gram teacher's forward pass."""
    side = recipe.gram_px
    model = recipe.model
    if side is None or not isinstance(model, ModelConfig):
        return 0.0, 0.0
    crops = GLOBAL_CROPS * recipe.training.slot_batch
    patches = (side // model.patch_px) ** 2
    seen = CropGroup(crops, patches, 1 + model.registers + patches, crops, 0.0)
    cosines = 2.0 * crops * (recipe.augmentation.global_px // model.patch_px) ** 4 * model.embed_dim
    return 4 * cosines, _embed(model, [seen]) + _blocks(model, [seen], all_wanted=True)


@dataclass(frozen=True, slots=True)
class _Heads:
    """Both heads on a slot."""

    recipe: NetworkRecipe
    dino: HeadSizes
    ibot: HeadSizes
    masked: float

    @staticmethod
    def of(recipe: NetworkRecipe, masked: float) -> "_Heads":
        objective = recipe.objective
        return _Heads(recipe, objective.dino_head_sizes, objective.ibot_head_sizes, masked)

    def bottlenecks(self, class_tokens: int) -> float:
        """From tokens to bottleneck vectors, forward."""
        dim = self.recipe.model.embed_dim
        rows = ((self.dino, class_tokens), (self.ibot, self.masked))
        if not self.recipe.objective.has_heads:
            return 0.0
        return sum(2.0 * n * (dim * each.hidden + each.hidden**2 + each.hidden * each.bottleneck) for each, n in rows)

    def logits(self, class_tokens: int) -> float:
        """From bottleneck vectors to logits, once."""
        return self._dino_logits(class_tokens) + self._ibot_logits() if self.recipe.objective.has_heads else 0.0

    def student_layers(self) -> float:
        """Projections of tokens and classifiers of a distillation, forward; all of global crops."""
        objective = self.recipe.objective
        if not isinstance(objective, DistillObjectiveConfig):
            return 0.0
        crops = GLOBAL_CROPS * self.recipe.training.slot_batch
        layers = student_layers(self.recipe.model.embed_dim, objective)
        return sum(
            2.0
            * inputs
            * outputs
            * (self.masked if name == "feature_head.patches" else crops)
            # The teacher's tokens need no gradient: two products instead of three.
            * (2 / 3 if name == "label_head.teacher" else 1)
            for name, inputs, outputs in layers
        )

    def losses(self) -> float:
        """The sum over a student view's targets, the products of distributions, KoLeo's cosines."""
        recipe = self.recipe
        images, views = recipe.training.slot_batch, GLOBAL_CROPS + recipe.augmentation.local_count
        dino = 2.0 * images * views * (GLOBAL_CROPS + 1) * self.dino.prototypes
        ibot = 2.0 * self.masked * self.ibot.prototypes
        among = recipe.objective.koleo_group or images
        koleo = 2.0 * GLOBAL_CROPS * images * among * recipe.model.embed_dim
        return dino + ibot + koleo if recipe.objective.has_heads else koleo

    def target_passes(self, slots_per_worker: int) -> float:
        """The teacher's logits beyond the one time that they are needed."""
        if self.recipe.objective.centring != "sinkhorn_knopp" or not self.recipe.objective.has_heads:
            return 0.0
        crops = GLOBAL_CROPS * self.recipe.training.slot_batch
        return self._passes(crops * slots_per_worker, self.dino) * self._dino_logits(crops) + (
            self._passes(self.masked * slots_per_worker, self.ibot) * self._ibot_logits()
        )

    def _passes(self, rows: float, sizes: HeadSizes) -> int:
        fit_in_one_chunk = rows * sizes.prototypes * 4 <= LOGIT_CHUNK_BYTES
        return 1 if fit_in_one_chunk else self.recipe.objective.sinkhorn_iterations

    def _dino_logits(self, rows: float) -> float:
        return 2.0 * rows * self.dino.bottleneck * self.dino.prototypes

    def _ibot_logits(self) -> float:
        return 2.0 * self.masked * self.ibot.bottleneck * self.ibot.prototypes

"""What the networks of a run cost together: one student and its teacher, or a frozen teacher with several students."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from heliostat.config.adapt import AdaptRecipe
from heliostat.config.distill import TEACHER, DistillRecipe
from heliostat.config.distill_objective import DistillObjectiveConfig
from heliostat.config.network import NetworkRecipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.training.planning.communication import Payload, step_payload, student_payload, targets_payload
from heliostat.training.planning.flops import GLOBAL_CROPS, StepFlops, step_flops, target_flops
from heliostat.training.planning.memory import Memory, frozen_bytes, product_bytes, worker_memory
from heliostat.training.planning.shapes import parameter_sizes

Staged = TypeVar("Staged", bound=NetworkRecipe)
_OF_HEADS = (
    *("prototypes", "head_hidden", "head_bottleneck"),
    *("ibot_head", "ibot_prototypes", "ibot_head_hidden", "ibot_head_bottleneck"),
)


@dataclass(frozen=True, slots=True)
class Networks:
    """Of a run."""

    students: Mapping[str, NetworkRecipe]
    """Each as if it were trained alone, by name; of a pretraining the run itself."""
    frozen: PretrainRecipe | None = None
    """The teacher of a distillation with the data and the schedules of the run."""
    is_kept: bool = False
    """What the teacher says is kept from before."""

    @staticmethod
    def of(recipe: TrainingRecipe, teacher: PretrainRecipe | None = None) -> "Networks":
        """Of a recipe.

        Args:
            recipe: Of the run.
            teacher: What the frozen teacher of a distillation is made of.
        """
        if isinstance(recipe, PretrainRecipe):
            return Networks({recipe.name: recipe})
        assert isinstance(recipe, DistillRecipe)  # noqa: S101 -- the only other kind that trains
        students = {student.name: recipe.of_student(student) for student in recipe.students}
        if teacher is None:
            return Networks(students)
        return Networks(students, _teaching(recipe, teacher, next(iter(students.values()))), recipe.teacher.cache)

    def at_stage(self, stage: int) -> "Networks":
        """The same with another stage of ZeRO."""
        staged = {name: _staged(each, stage) for name, each in self.students.items()}
        return replace(self, students=staged, frozen=None if self.frozen is None else _staged(self.frozen, stage))

    @property
    def parameters(self) -> int:
        """Of all students, with heads; their averages have as many."""
        return sum(sum(parameter_sizes(each).values()) for each in self.students.values())

    @property
    def backbone_parameters(self) -> int:
        """Of all students' backbones."""
        sizes = [parameter_sizes(each) for each in self.students.values()]
        return sum(size for each in sizes for name, size in each.items() if name.startswith("backbone."))

    def flops(self, rounds: int) -> StepFlops:
        """Operations of a whole step."""
        if self.frozen is None:
            (recipe,) = self.students.values()
            return _sum([_times(step_flops(each, rounds), share) for each, share in _by_sizes(recipe)])
        return _sum([self._of_frozen(rounds), *(self._of_student(name, rounds) for name in self.students)])

    def flops_by_network(self) -> dict[str, float]:
        """What the method needs for an image, by student and for the frozen teacher; nothing of a pretraining."""
        if self.frozen is None:
            return {}
        images = self.frozen.training.global_batch
        of_students = {name: self._of_student(name, 1).model / images for name in self.students}
        return {TEACHER: self._of_frozen(1).model / images, **of_students}

    def memory(self, workers: int) -> Memory:
        """What one of so many workers holds; students take turns, so of activations there are the largest."""
        each = [
            max((worker_memory(sized, workers) for sized, _ in _by_sizes(recipe)), key=lambda found: found.device_bytes)
            for recipe in self.students.values()
        ]
        together = {part.name: sum(getattr(memory, part.name) for memory in each) for part in fields(Memory)}
        together["activations_bytes"] = max(memory.activations_bytes for memory in each)
        if next(iter(self.students.values())).training.zero_stage < 3:  # DeepSpeed lets go of them after each student
            together["buffers_bytes"] = max(memory.buffers_bytes for memory in each)
        if self.frozen is not None:
            together["teacher_bytes"] += frozen_bytes(self.frozen, workers, heads_alone=self.is_kept)
            together["buffers_bytes"] += self._views_bytes(self.frozen, workers)
        return Memory(**together)

    def _views_bytes(self, frozen: PretrainRecipe, workers: int) -> float:
        """What the teacher says of all of a worker's slots of a step, kept until students come to them."""
        objective, taught = frozen.objective, next(iter(self.students.values())).objective
        patches = sum((frozen.augmentation.global_px // patch_px) ** 2 for patch_px in self._patch_sizes)
        numbers = 0
        if objective.has_heads:
            numbers += objective.dino_head_sizes.bottleneck + patches * objective.ibot_head_sizes.bottleneck
        if isinstance(taught, DistillObjectiveConfig) and taught.compares_tokens:
            numbers += frozen.model.embed_dim * (1 + patches * (taught.features.weight > 0))
        rounds = -(-frozen.training.slots // workers)
        return float(rounds * GLOBAL_CROPS * frozen.training.slot_batch * numbers * product_bytes(frozen))

    def payload(self, rounds: int, workers: int) -> Payload:
        """What the collectives of a step work on."""
        if self.frozen is None:
            (recipe,) = self.students.values()
            return step_payload(recipe, rounds, workers)
        parts = [student_payload(each, rounds, workers) for each in self.students.values()]
        parts.append(targets_payload(self.frozen, rounds, workers, len(self._patch_sizes), is_kept=self.is_kept))
        return Payload(*(sum(getattr(part, each.name) for part in parts) for each in fields(Payload)))

    @property
    def _compares_patches(self) -> bool:
        return any(each.objective.compares_patches for each in self.students.values())

    @property
    def _patch_sizes(self) -> set[int]:
        return {each.model.patch_px for each in self.students.values()}

    def _of_frozen(self, rounds: int) -> StepFlops:
        assert self.frozen is not None  # noqa: S101
        # Its heads see a map of tokens for each size of the students' patches.
        seen, own_seen = 0.0, 0.0
        if self._compares_patches:
            seen = sum(_all_patches(self.frozen, patch_px) for patch_px in self._patch_sizes)
            own_seen = _all_patches(self.frozen, self.frozen.model.patch_px)
        if self.is_kept:
            return target_flops(self.frozen, rounds, seen)
        own = step_flops(self.frozen, rounds, own_seen)
        heads = step_flops(self.frozen, rounds, seen)
        return StepFlops(0.0, 0.0, own.teacher_backbone, heads.teacher_heads, 0.0, heads.repeated_targets, 0.0)

    def _of_student(self, name: str, rounds: int) -> StepFlops:
        recipe = self.students[name]
        seen = _all_patches(recipe, recipe.model.patch_px) if self._compares_patches else 0.0
        made = step_flops(recipe, rounds, seen)
        return StepFlops(made.student_backbone, made.student_heads, 0.0, 0.0, 0.0, 0.0, made.repeated_blocks)


def _staged(recipe: Staged, stage: int) -> Staged:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"zero_stage": stage})})


def _teaching(recipe: DistillRecipe, teacher: PretrainRecipe, student: NetworkRecipe) -> PretrainRecipe:
    heads = {name: getattr(teacher.objective, name) for name in _OF_HEADS}
    objective = recipe.objective.without_students.model_copy(update=heads)
    taken = {"objective": objective, "augmentation": student.augmentation, "training": student.training}
    return teacher.model_copy(update=taken)


def _all_patches(recipe: NetworkRecipe, patch_px: int) -> float:
    patches = (recipe.augmentation.global_px // patch_px) ** 2
    return float(GLOBAL_CROPS * recipe.training.slot_batch * patches)


def _by_sizes(recipe: NetworkRecipe) -> list[tuple[NetworkRecipe, float]]:
    """A recipe for each of its sizes of crops, and the share of steps that have them."""
    if not isinstance(recipe, AdaptRecipe) or not recipe.crop_sizes:
        return [(recipe, 1.0)]
    whole = sum(sizes.weight for sizes in recipe.crop_sizes)
    return [(recipe.at_sizes(sizes), sizes.weight / whole) for sizes in recipe.crop_sizes]


def _times(flops: StepFlops, share: float) -> StepFlops:
    return StepFlops(*(share * getattr(flops, each.name) for each in fields(StepFlops)))


def _sum(parts: list[StepFlops]) -> StepFlops:
    return StepFlops(*(sum(getattr(part, each.name) for part in parts) for each in fields(StepFlops)))

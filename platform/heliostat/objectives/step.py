"""One optimizer step: the same mathematics for any number of workers.

First the teacher sees all slots, because centring is defined over the global batch; then the student goes through its
slots one by one. Everything that depends on "the batch" is per slot or per global batch; the number of workers appears
only in who computes which slot (``data/slots.py``).

What is kept of the teacher's targets is a bottleneck vector per token and an offset per prototype; distributions are
made from them where they are compared (``cross_entropy.py``).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from heliostat.checkpoint.format import StateSlice, tensor_name
from heliostat.config.model import ModelConfig
from heliostat.config.pretrain import PretrainRecipe
from heliostat.data.slots import SlotPlan
from heliostat.errors import NonFiniteLossError
from heliostat.models.vit import VisionTransformer
from heliostat.models.weights.runs import TEACHER
from heliostat.objectives.centring import centre_offset, mean_logits, next_centre
from heliostat.objectives.cross_entropy import CHUNK_BYTES, Layer, Targets, compute_dtype
from heliostat.objectives.engine import MASTER, MOMENTS, Engine, autocast, clip_factor
from heliostat.objectives.gram import gram_teacher_refreshes
from heliostat.objectives.loss_scale import LossScale
from heliostat.objectives.networks import TERMS, Network, SlotBatch, SlotTargets, TeacherView, gram_anchor
from heliostat.objectives.schedules import StepValues, values_at
from heliostat.objectives.sinkhorn import sinkhorn_offset

GRAM_TEACHER, CENTRE = "gram_teacher", "centre"
"""Kinds of state that every worker holds whole, as the teacher."""
_NAMED_IDS = 20

Phase = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class SkippedStep:
    """Why a step's update was left out, and the samples of the slots whose loss was not finite.

    No sample is named where all losses were finite and the gradient was not.
    """

    reason: str
    sample_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step tells: means over its slots, gradient norms per sub-module before clipping, scheduled values."""

    terms: dict[str, float]
    gradient_norms: dict[str, float]
    values: StepValues
    skipped: SkippedStep | None = None
    """None if the update was made."""


def _fault(step: int, numbers: Mapping[str, float]) -> str | None:
    wrong = ", ".join(f"{name} {value}" for name, value in numbers.items() if not math.isfinite(value))
    return f"step {step} is not finite ({wrong})" if wrong else None


def copied_backbone(backbone: VisionTransformer, model: ModelConfig) -> VisionTransformer:
    """A copy that learns nothing, on the same device."""
    copied = VisionTransformer(model, backbone.grid)
    copied.load_state_dict(backbone.state_dict())
    return copied.to(next(backbone.parameters()).device).requires_grad_(False).eval()


class TrainingStep:
    """Student and teacher of a run, advanced one step at a time.

    Args:
        recipe: the run.
        engine: holds the student.
        teacher: the teacher's network, which this object owns from now on.
        phase: called with the name of each part of a step, to measure it.
    """

    def __init__(
        self, recipe: PretrainRecipe, engine: Engine, teacher: Network, phase: Phase = lambda _: nullcontext()
    ) -> None:
        self._recipe = recipe
        self._engine = engine
        self._phase = phase
        device = next(teacher.parameters()).device
        teacher.requires_grad_(False).eval()
        self.gram_teacher = (
            copied_backbone(teacher.backbone, recipe.model) if recipe.objective.anchoring is not None else None
        )
        self._teacher = engine.teacher(teacher)
        self.plan = SlotPlan(recipe.training.slots, engine.world_size)
        self._heads = {"dino": teacher.dino_head, "ibot": teacher.patch_head}
        self._centres: dict[str, Tensor] = {}
        if recipe.objective.centring == "softmax":
            self._centres = {
                name: torch.zeros(head.last_layer.prototypes, device=device) for name, head in self._heads.items()
            }
        self.skips_in_a_row = 0
        self.loss_scale = LossScale.for_precision(recipe.training.precision)

    @property
    def student(self) -> Network:
        """The student's network."""
        return self._engine.student

    @property
    def teacher(self) -> Network:
        """The teacher's network."""
        return self._teacher.network

    def replicated_state(self) -> dict[str, Mapping[str, Tensor]]:
        """State that every worker holds whole, by kind and name; checkpoints read and overwrite these tensors."""
        state: dict[str, Mapping[str, Tensor]] = {**self._engine.whole_state(), **self._teacher.whole_state()}
        if self.gram_teacher is not None:
            state[GRAM_TEACHER] = {name: parameter.data for name, parameter in self.gram_teacher.named_parameters()}
        if self._centres:
            state[CENTRE] = self._centres
        return state

    def state_slices(self) -> Iterator[StateSlice]:
        """This worker's share of the state that no worker holds whole: all shares together hold it exactly once."""
        yield from self._engine.state_slices()
        yield from self._teacher.state_slices()

    def tensor_sizes(self) -> dict[str, int]:
        """Every tensor of the state (``kind|name``) and its number of elements."""
        sizes = {
            tensor_name(kind, name): n for kind in (MASTER, *MOMENTS, TEACHER) for name, n in self._engine.sizes.items()
        }
        for kind in (GRAM_TEACHER, CENTRE):
            sizes |= {
                tensor_name(kind, name): each.numel() for name, each in self.replicated_state().get(kind, {}).items()
            }
        return sizes

    def run(self, step: int, slots: Sequence[SlotBatch], values: StepValues | None = None) -> StepResult:
        """Advance student and teacher by one step.

        A step whose loss or gradient is not finite is left out: no parameter, moment, centre or EMA teacher changes.

        Args:
            step: index of the step, from 0.
            slots: this worker's slots in the order of ``SlotPlan.slots_of(rank)``.
            values: learning rate and so on; None takes the recipe's schedules.

        Raises:
            ValueError: another number of slots than this worker has in a step, or a slot that does not fit together.
            NonFiniteLossError: one step more in a row than ``training.nonfinite_steps`` was not finite; on every worker
                alike, naming the samples.
        """
        self._check(slots)
        values = values or values_at(step, self._recipe.training, self._recipe.objective)
        with self._phase("teacher_s"):
            self._refresh_gram_teacher(step)
            views = self._views(slots)
            targets = self._targets(views, values.teacher_temperature)
        with self._phase("student_s"):
            terms, norms, broken = self._gradients(step, slots, targets)
        fault = _fault(step, {**terms, **{f"gradient norm of {name}": norm for name, norm in norms.items()}})
        if fault is not None:
            skipped = self._skip(fault, [sample for index in broken for sample in slots[index].ids])
            return StepResult(terms, norms, values, skipped)
        self.skips_in_a_row = 0
        with self._phase("optimizer_s"):
            limit, scale = self._recipe.training.clip_norm, self.loss_scale.factor
            self._engine.step(values, {name: clip_factor(norm, limit) / scale for name, norm in norms.items()})
            self.loss_scale = self.loss_scale.held(self._recipe.training.precision)
        with self._phase("ema_s"):
            self._move_centres(views)  # with the prototypes that gave the targets, before they move
            self._teacher.follow(self._engine.student, values.ema_momentum)
        return StepResult(terms, norms, values)

    def _check(self, slots: Sequence[SlotBatch]) -> None:
        expected = len(self.plan.slots_of(self._engine.rank))
        if len(slots) != expected:
            raise ValueError(
                f"worker {self._engine.rank} of {self.plan.world_size} has {expected} of the step's {self.plan.slots} "
                f"slots (global_batch / slot_batch), {len(slots)} were given"
            )
        for slot in slots:
            slot.check(self._recipe.training.slot_batch, self._recipe.model.patch_px)

    @contextmanager
    def whole_teacher(self) -> Iterator[VisionTransformer]:
        """The teacher's backbone, whole within the context, which all workers enter together; nobody may run it."""
        with self._teacher.backbone_whole():
            yield self.teacher.backbone

    def _refresh_gram_teacher(self, step: int) -> None:
        gram = self._recipe.objective.anchoring
        if gram is not None and self.gram_teacher is not None and gram_teacher_refreshes(step, gram):
            with self._teacher.backbone_whole():
                self.gram_teacher.load_state_dict(self.teacher.backbone.state_dict())

    def _views(self, slots: Sequence[SlotBatch]) -> list[TeacherView]:
        with autocast(self._recipe.training, slots[0].global_crops.device):
            return self._teacher.views(slots, self.plan.rounds)

    @torch.no_grad()
    def _targets(self, views: Sequence[TeacherView], temperature: float) -> list[SlotTargets]:
        vectors = {"dino": [view.cls.flatten(0, 1) for view in views], "ibot": [view.masked for view in views]}
        with autocast(self._recipe.training, views[0].cls.device), self._teacher.last_layers():
            layers = {
                id(head): Layer.of(head.last_layer, compute_dtype(views[0].cls)) for head in set(self._heads.values())
            }
            of_head = {name: layers[id(head)] for name, head in self._heads.items()}
            offsets = {
                name: self._offset(name, torch.cat(vectors[name]), layer, temperature)
                for name, layer in of_head.items()
            }
        return [
            SlotTargets(
                cls=Targets(view.cls, of_head["dino"], offsets["dino"], temperature),
                masked=Targets(view.masked.unsqueeze(0), of_head["ibot"], offsets["ibot"], temperature),
            )
            for view in views
        ]

    def _offset(self, name: str, z_MZ: Tensor, layer: Layer, temperature: float) -> Tensor:
        if name in self._centres:
            return centre_offset(self._centres[name], temperature)
        chunks: Callable[[], Iterable[Tensor]] = lambda: layer.logit_chunks(z_MZ)  # noqa: E731
        if len(z_MZ) * len(layer.rows_KZ) * 4 <= CHUNK_BYTES:  # one chunk: no need to compute it at every iteration
            kept = list(chunks())
            chunks = lambda: kept  # noqa: E731
        iterations = self._recipe.objective.sinkhorn_iterations
        return sinkhorn_offset(chunks, temperature, iterations, self._engine.reducer)

    def _gradients(
        self, step: int, slots: Sequence[SlotBatch], targets: Sequence[SlotTargets]
    ) -> tuple[dict[str, float], dict[str, float], list[int]]:
        """Loss terms and gradient norms of the step, and which of this worker's slots have a loss that is not finite.

        Gradients that only the loss scale has made infinite are computed again with a smaller one. If none is small
        enough, the scale was not to blame, and stays.
        """
        before = self.loss_scale
        while True:
            terms, broken = self._accumulate(step, slots, targets)
            norms = {name: norm / self.loss_scale.factor for name, norm in self._engine.gradient_norms().items()}
            too_large = all(map(math.isfinite, terms.values())) and not all(map(math.isfinite, norms.values()))
            if not too_large:
                return terms, norms, broken
            if not self.loss_scale.can_fall:
                self.loss_scale = before
                return terms, norms, broken
            self._engine.discard()
            self.loss_scale = self.loss_scale.lower()

    def _accumulate(
        self, step: int, slots: Sequence[SlotBatch], targets: Sequence[SlotTargets]
    ) -> tuple[dict[str, float], list[int]]:
        """Means of the loss terms over all slots, and which of this worker's slots have a loss that is not finite."""
        turns = self.plan.turns_of(self._engine.rank)
        counted: list[Tensor] = []
        for round_index, turn in enumerate(turns):
            index = round_index if turn.counts else 0
            losses = self._engine.losses(slots[index], self._with_gram(step, slots[index], targets[index]))
            if turn.counts:
                counted.append(torch.stack([losses[term].detach().double() for term in TERMS]))
            weight = self.plan.loss_weight if turn.counts else 0.0
            self._engine.backward(
                losses["loss"] * (weight * self.loss_scale.factor), is_last_round=round_index == len(turns) - 1
            )
        by_slot = torch.stack(counted)
        means = (self._engine.reducer.sum(by_slot.sum(0)) / self.plan.slots).tolist()
        broken = (~by_slot.isfinite().all(1)).nonzero().flatten().tolist()
        # A weightless turn repeats a slot that counts on the same worker, so a non-finite value in it shows here too.
        return dict(zip(TERMS, means, strict=True)), broken

    @torch.no_grad()
    def _with_gram(self, step: int, slot: SlotBatch, targets: SlotTargets) -> SlotTargets:
        gram = self._recipe.objective.anchoring
        if gram is None or self.gram_teacher is None or step < gram.from_step:
            return targets
        with autocast(self._recipe.training, slot.global_crops.device):
            anchor = gram_anchor(self.gram_teacher, slot)
        return SlotTargets(targets.cls, targets.masked, anchor)

    def _skip(self, fault: str, ids: list[str]) -> SkippedStep:
        self._engine.discard()
        named = self._engine.gather(ids)
        self.skips_in_a_row += 1
        limit = self._recipe.training.nonfinite_steps
        if self.skips_in_a_row <= limit:
            return SkippedStep(fault, tuple(named))
        more = f" and {len(named) - _NAMED_IDS} more" if len(named) > _NAMED_IDS else ""
        samples = f"; samples of the slots: {', '.join(named[:_NAMED_IDS])}{more}" if named else ""
        before = f", and neither were the {limit} steps before it, which were left out" if limit else ""
        raise NonFiniteLossError(
            f"{fault}{before}{samples}",
            "Look at these samples, or resume from the last checkpoint with a lower training.base_lr or "
            "training.precision fp32",
        )

    @torch.no_grad()
    def _move_centres(self, views: Sequence[TeacherView]) -> None:
        if not self._centres:
            return
        with self._teacher.last_layers():
            self._move_each_centre(views)

    def _move_each_centre(self, views: Sequence[TeacherView]) -> None:
        momentum = self._recipe.objective.centre_momentum
        for name, centre_K in self._centres.items():
            layer = Layer.of(self._heads[name].last_layer, torch.float32)
            vectors = [view.cls.flatten(0, 1) if name == "dino" else view.masked for view in views]
            means = [mean_logits(z_MZ, layer) for z_MZ in vectors if len(z_MZ)]
            centre_K.copy_(next_centre(centre_K, means, self._engine.reducer, momentum))

"""The teacher's side of a step: what it says of the global batch, as the distributions that students are compared with.

Nothing of it depends on who learns from it: in pre-training the teacher follows its only student, in distillation it is
another, frozen network with several.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from heliostat.config.objective import ObjectiveConfig
from heliostat.config.training import TrainingConfig
from heliostat.models.heads import ProjectionHead
from heliostat.objectives.centring import centre_offset, mean_logits, next_centre
from heliostat.objectives.cross_entropy import CHUNK_BYTES, Layer, Targets, compute_dtype
from heliostat.objectives.engine import autocast
from heliostat.objectives.kept_views import unpack
from heliostat.objectives.networks import SlotBatch, SlotTargets
from heliostat.objectives.sinkhorn import Reducer, sinkhorn_offset
from heliostat.objectives.teacher import Teacher
from heliostat.objectives.teacher_view import TeacherView, Vectors

CENTRE = "centre"
"""Kind of the centres of softmax centring in a checkpoint; every worker holds them whole."""


class TeacherTargets:
    """Makes the targets of each step; all workers call its methods alike.

    Args:
        objective: centring and its constants.
        training: the compute precision.
        teacher: whose heads are compared with.
        rounds: of a step.
        reducer: over the workers.
    """

    def __init__(
        self, objective: ObjectiveConfig, training: TrainingConfig, teacher: Teacher, rounds: int, reducer: Reducer
    ) -> None:
        self._objective = objective
        self._training = training
        self.teacher = teacher
        self._rounds = rounds
        self._reducer = reducer
        network = teacher.network
        self._patch_names = {
            px: "ibot" if px == network.shown.patch_px[0] else f"ibot_{px}px" for px in network.shown.patch_px
        }
        self._heads: dict[str, ProjectionHead] = {}
        if network.shown.bottlenecks:
            self._heads = {"dino": network.dino_head, **dict.fromkeys(self._patch_names.values(), network.patch_head)}
        self.centres: dict[str, Tensor] = {}
        if objective.centring == "softmax" and self._heads:
            device = next(network.parameters()).device
            self.centres = {
                name: torch.zeros(head.last_layer.prototypes, device=device) for name, head in self._heads.items()
            }

    def views(self, slots: Sequence[SlotBatch]) -> list[TeacherView]:
        """What the teacher says of this worker's slots, or has said of them before."""
        if all(slot.kept is not None for slot in slots):
            return [self._kept(slot) for slot in slots]
        with autocast(self._training, slots[0].global_crops.device):
            return self.teacher.views(slots, self._rounds)

    def _kept(self, slot: SlotBatch) -> TeacherView:
        assert slot.kept is not None  # noqa: S101
        network = self.teacher.network
        patches = [math.prod(slot.grid(px)) for px in network.shown.patch_px]
        return unpack(slot.kept, network.shown, patches, network.widths)

    @torch.no_grad()
    def of(self, views: Sequence[TeacherView], temperature: float) -> list[dict[int, SlotTargets]]:
        """The targets of this worker's slots, spread over the prototypes by what all workers' slots say.

        Args:
            views: of this worker's slots.
            temperature: of the targets.

        Returns:
            For each slot, its targets by size of the student's patches.
        """
        found = self._of_prototypes([view.bottlenecks for view in views if view.bottlenecks is not None], temperature)
        targets: list[dict[int, SlotTargets]] = []
        for index, view in enumerate(views):
            of_slot = {}
            for size, (px, name) in enumerate(self._patch_names.items()):
                of_cls, of_patches = (found[index]["dino"], found[index][name]) if found else (None, None)
                cls_tokens = None if view.tokens is None else view.tokens.cls.flatten(0, 1)
                patch_tokens = view.tokens.patches[size] if view.tokens is not None and view.tokens.patches else None
                of_slot[px] = SlotTargets(of_cls, of_patches, cls_tokens=cls_tokens, patch_tokens=patch_tokens)
            targets.append(of_slot)
        return targets

    def _of_prototypes(self, views: Sequence[Vectors], temperature: float) -> list[dict[str, Targets]]:
        """Of each slot, its distributions by name; nothing where there are no heads."""
        if not views:
            return []
        vectors = [self._named(view) for view in views]
        with autocast(self._training, views[0].cls.device), self.teacher.last_layers():
            layers = {
                id(head): Layer.of(head.last_layer, compute_dtype(views[0].cls)) for head in set(self._heads.values())
            }
            of_head = {name: layers[id(head)] for name, head in self._heads.items()}
            offsets = {
                name: self._offset(name, torch.cat([each[name].flatten(0, -2) for each in vectors]), layer, temperature)
                for name, layer in of_head.items()
            }
        return [
            {
                name: Targets(z if z.dim() == 3 else z.unsqueeze(0), of_head[name], offsets[name], temperature)
                for name, z in of_view.items()
            }
            for of_view in vectors
        ]

    @torch.no_grad()
    def move_centres(self, views: Sequence[TeacherView]) -> None:
        """After a step that counts: with the prototypes that gave its targets, before they move."""
        if not self.centres:
            return
        vectors = [self._named(view.bottlenecks) for view in views if view.bottlenecks is not None]
        with self.teacher.last_layers():
            for name, centre_K in self.centres.items():
                layer = Layer.of(self._heads[name].last_layer, torch.float32)
                means = [mean_logits(each[name].flatten(0, -2), layer) for each in vectors if each[name].numel()]
                centre_K.copy_(next_centre(centre_K, means, self._reducer, self._objective.centre_momentum))

    def _named(self, vectors: Vectors) -> dict[str, Tensor]:
        """By what each is the target of: classes (2, B, Z), patches (M, Z)."""
        return {"dino": vectors.cls, **dict(zip(self._patch_names.values(), vectors.patches, strict=True))}

    def _offset(self, name: str, z_MZ: Tensor, layer: Layer, temperature: float) -> Tensor:
        if name in self.centres:
            return centre_offset(self.centres[name], temperature)
        chunks: Callable[[], Iterable[Tensor]] = lambda: layer.logit_chunks(z_MZ)  # noqa: E731
        if len(z_MZ) * len(layer.rows_KZ) * 4 <= CHUNK_BYTES:  # one chunk: no need to compute it at every iteration
            kept = list(chunks())
            chunks = lambda: kept  # noqa: E731
        return sinkhorn_offset(chunks, temperature, self._objective.sinkhorn_iterations, self._reducer)

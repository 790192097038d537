"""Bytes that a worker sends in an optimizer step, by ZeRO stage, as DeepSpeed 0.19.8 does it.

Found by counting the collectives of real worlds; a test counts them again:
- stages 1 and 2 reduce gradients by an all-reduce of whole buckets, stage 1 once in a step, stage 2 at EVERY backward
  pass, that is once in a round; then each worker updates its share, and an all-gather brings the parameters back;
- stage 3 reduces by a reduce-scatter at every backward pass. Parameters are gathered for the student's forward pass in
  every round and kept for the backward pass if that comes within ``REUSE_ELEMENTS`` parameters of computation, else
  gathered again. Parameters below ``PERSISTENT_ELEMENTS`` stay whole and are gathered once, after the update. The
  teacher's, of whatever size, are gathered in every round, but for its prototypes: once in a step;
- Sinkhorn-Knopp reduces a vector of the prototypes' number per iteration and head.

Payloads become bytes sent by the rule of ring algorithms (Patarasuk and Yuan, 2009): with W workers an all-reduce of n
bytes sends 2 n (W - 1) / W from each, an all-gather and a reduce-scatter half of it.
"""

from dataclasses import dataclass

from heliostat.config.network import NetworkRecipe
from heliostat.training.planning.shapes import parameter_sizes

PERSISTENT_ELEMENTS = 100_000
"""``stage3_param_persistence_threshold``: smaller parameters are whole on every worker."""
REUSE_ELEMENTS = 1_000_000_000
"""``stage3_max_reuse_distance``."""
_FP32 = 4
_FP64 = 8


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes that the collectives of one step work on: whole tensors, whatever each worker has of them."""

    all_reduce: float
    reduce_scatter: float
    all_gather: float

    def sent_bytes(self, workers: int) -> float:
        """What each worker sends."""
        return (2 * self.all_reduce + self.reduce_scatter + self.all_gather) * (workers - 1) / workers


def step_payload(recipe: NetworkRecipe, rounds: int, workers: int) -> Payload:
    """The collectives of a step in steady state; nothing for one worker.

    Args:
        recipe: Of the run; its ``training.zero_stage`` decides.
        rounds: Backward passes of a step.
        workers: That share it.
    """
    of_student, of_targets = student_payload(recipe, rounds, workers), targets_payload(recipe, rounds, workers)
    return Payload(
        of_student.all_reduce + of_targets.all_reduce,
        of_student.reduce_scatter,
        of_student.all_gather + of_targets.all_gather,
    )


def student_payload(recipe: NetworkRecipe, rounds: int, workers: int) -> Payload:
    """Of a student's gradients and parameters; arguments as of ``step_payload``."""
    stage = recipe.training.zero_stage
    if workers == 1:
        return Payload(0, 0, 0)
    if stage == 3:
        return _stage_3(recipe, rounds, workers)
    gradients = _FP32 * sum(parameter_sizes(recipe).values())
    reductions = rounds if stage == 2 else 1
    return Payload(reductions * gradients, 0, gradients if stage else 0)


def targets_payload(
    recipe: NetworkRecipe, rounds: int, workers: int, patch_sizes: int = 1, *, is_kept: bool = False
) -> Payload:
    """Of the teacher's pass and of finding the targets, of patches for each of the students' sizes of them.

    Nothing of the pass where what the teacher says is kept. Other arguments as of ``step_payload``.
    """
    if workers == 1:
        return Payload(0, 0, 0)
    vectors = _target_vectors(recipe, patch_sizes)
    if recipe.training.zero_stage < 3:
        return Payload(vectors, 0, 0)
    padded = _padded(recipe, workers)
    prototypes = sum(size for name, size in padded.items() if "last_layer" in name)
    # Once for the targets, and once more to move centres.
    gathers = 2 if recipe.objective.centring == "softmax" else 1
    in_passes = 0 if is_kept else rounds * (sum(padded.values()) - prototypes)
    return Payload(vectors, 0, in_passes + gathers * prototypes)


def is_persistent(elements: int) -> bool:
    """Whether stage 3 keeps a parameter of the student whole."""
    return elements < PERSISTENT_ELEMENTS


def kept_until_backward(recipe: NetworkRecipe) -> set[str]:
    """The student's parameters that stage 3 gathers in the forward pass and still has in the backward pass."""
    # Between the two uses of a parameter lie all later ones: in the forward pass, in the backward pass, and once more
    # where blocks are recomputed.
    passes = 2 if recipe.training.activation_checkpointing == "none" else 3
    later, kept = 0, set()
    for name, elements in reversed(parameter_sizes(recipe).items()):
        if passes * later >= REUSE_ELEMENTS:
            break
        later += elements
        if not is_persistent(elements):
            kept.add(name)
    return kept


def _padded(recipe: NetworkRecipe, workers: int) -> dict[str, int]:
    """Bytes of each parameter cut into equal shards; the last ones may be padding."""
    return {name: -(-size // workers) * workers * _FP32 for name, size in parameter_sizes(recipe).items()}


def _stage_3(recipe: NetworkRecipe, rounds: int, workers: int) -> Payload:
    padded = _padded(recipe, workers)
    sizes = parameter_sizes(recipe)
    kept = kept_until_backward(recipe)
    persistent = sum(size for name, size in padded.items() if is_persistent(sizes[name]))
    in_round = sum(size * (1 if name in kept else 2) for name, size in padded.items() if not is_persistent(sizes[name]))
    return Payload(0, rounds * sum(padded.values()), rounds * in_round + persistent)


def _target_vectors(recipe: NetworkRecipe, patch_sizes: int) -> float:
    """What finding the targets reduces: float64 sums, and one float32 maximum with Sinkhorn-Knopp."""
    objective = recipe.objective
    if not objective.has_heads:
        return 0.0
    prototypes = objective.dino_head_sizes.prototypes + patch_sizes * objective.ibot_head_sizes.prototypes
    if objective.centring == "softmax":
        return _FP64 * prototypes
    return (_FP32 + _FP64 * objective.sinkhorn_iterations) * prototypes

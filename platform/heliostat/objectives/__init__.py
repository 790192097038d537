"""The mathematics of one training step, without Ray or DeepSpeed.

A whole step can be driven here with weights, crops, masks and schedule values of one's own, to look at it, to debug it
or to compare it with another implementation. ``training/`` runs the same ``TrainingStep`` on DeepSpeed.

>>> import torch
>>> from heliostat.config.pretrain import PretrainRecipe
>>> from heliostat.objectives import SlotBatch, StepValues, single_process_step
>>> recipe = PretrainRecipe.model_validate({
...     "kind": "pretrain", "name": "one-process", "dataset": {"name": "none"},
...     "model": {"arch": "custom", "embed_dim": 32, "depth": 2, "heads": 2, "patch_px": 4, "drop_path": 0.0},
...     "augmentation": {"global_px": 16, "local_px": 8, "local_count": 2},
...     "objective": {"prototypes": 64, "head_hidden": 32, "head_bottleneck": 16, "ibot_head": "shared",
...                   "centring": "softmax"},
...     "training": {"steps": 10, "global_batch": 4, "slot_batch": 4, "precision": "fp32"},
... })
>>> step = single_process_step(recipe)  # or: single_process_step(recipe, student_weights, teacher_weights)
>>> sorted(step.student.state_dict())[:3]
['backbone.blocks.0.attn.proj.bias', 'backbone.blocks.0.attn.proj.weight', 'backbone.blocks.0.attn.qkv.bias']
>>> masks = torch.zeros(8, 16, dtype=torch.bool)  # 2 global crops of 4 images, 4 x 4 patches each
>>> masks[1, 3:7] = True
>>> slot = SlotBatch(
...     global_crops=torch.rand(8, 3, 16, 16),  # crop 1 of every image, then crop 2 of every image
...     local_crops=torch.rand(8, 3, 8, 8),  # likewise: local crop 1 of every image, then 2, …
...     masks=masks,
... )
>>> result = step.run(0, [slot])  # the recipe's schedules at step 0
>>> own = StepValues(lr=1e-3, weight_decay=0.04, ema_momentum=0.99, teacher_temperature=0.04, prototypes_frozen=False)
>>> result = step.run(1, [slot], own)  # or values of one's own
>>> sorted(result.terms)  # means over the slots, unweighted but for ``loss``
['dino', 'dino_global', 'dino_local', 'gram', 'ibot', 'koleo', 'loss']
>>> sorted(result.gradient_norms)  # before clipping; with separate heads there is ``ibot_head`` too
['backbone', 'dino_head']
>>> weights = step.student.state_dict(), step.teacher.state_dict()  # after the update

What the terms are: ``loss`` = ``dino_weight`` * ``dino`` + ``ibot_weight`` * ``ibot`` + ``koleo_weight`` * ``koleo`` +
``gram.weight`` * ``gram``; ``dino`` = ``dino_global`` + ``dino_local`` (each its share of the mean over all pairs of
crops); ``koleo`` is the sum over the two global crops. DINOv2's own log shows half of ``ibot`` and of ``koleo``.

Parameters have the names and shapes of DINOv2's checkpoints (``backbone.blocks.0.attn.qkv.weight``,
``dino_head.mlp.0.weight``, ``dino_head.last_layer.weight_g`` …); a shared head is ``dino_head``. Several slots may be
given (``global_batch / slot_batch``): gradients are averaged over them, Sinkhorn-Knopp and centring see all of them
together. The centres of softmax centring start at 0; ``step.replicated_state()["centre"]`` holds them, to look at or to
overwrite in place. Clipping, layer-wise decay and the patch embedding's rate are those of ``recipe.training``. Without
``drops`` nothing is dropped, whatever ``model.drop_path`` says: all draws are made beforehand (``masking.draw_masks``,
``masking.draw_drops``) and handed in.
"""

from collections.abc import Mapping

from torch import Tensor

from heliostat.config.pretrain import PretrainRecipe
from heliostat.models.positions import at_grid
from heliostat.objectives.engine import PlainEngine
from heliostat.objectives.networks import Network, SlotBatch
from heliostat.objectives.schedules import StepValues
from heliostat.objectives.step import TrainingStep
from heliostat.objectives.step_state import StepResult

__all__ = ["SlotBatch", "StepResult", "StepValues", "TrainingStep", "single_process_step"]


def single_process_step(
    recipe: PretrainRecipe,
    student: Mapping[str, Tensor] | None = None,
    teacher: Mapping[str, Tensor] | None = None,
    device: str = "cpu",
) -> TrainingStep:
    """A training step on one process; see the example above.

    Args:
        recipe: architecture, objective, optimizer; ``training.precision`` fp32 to compare numbers.
        student: state dict of the student's network, whose position embedding may be of another grid (the
            high-resolution stage); None draws the recipe's initial weights.
        teacher: state dict of the teacher's; None copies the student.
        device: where to compute.
    """
    networks = Network(recipe), Network(recipe)
    networks[0].init_weights(recipe.seed)
    grid, mode = networks[0].backbone.grid, recipe.model.resize
    if student is not None:
        networks[0].load_state_dict(at_grid(student, grid, mode))
    networks[1].load_state_dict(networks[0].state_dict() if teacher is None else at_grid(teacher, grid, mode))
    own, other = (network.to(device) for network in networks)
    return TrainingStep(recipe, PlainEngine(own, recipe.training), other)

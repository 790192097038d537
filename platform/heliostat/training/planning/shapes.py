"""Names and shapes of a network's parameters, from the recipe alone: a laptop without torch can plan a run.

A test holds them against the parameters of the real network, in its order.

Legend: D width, F hidden width, K prototypes, Z bottleneck width.
"""

import math
from collections.abc import Iterator

from heliostat.config.distill_objective import DistillObjectiveConfig
from heliostat.config.model import ModelConfig
from heliostat.config.network import NetworkRecipe
from heliostat.config.objective import HeadSizes
from heliostat.training.planning.convolution import parameters

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(recipe: NetworkRecipe) -> Shapes:
    """Shapes of student (and teacher), by name, in the order in which the forward pass is built."""
    objective, dim = recipe.objective, recipe.model.embed_dim
    heads = {"dino_head": objective.dino_head_sizes} if objective.has_heads else {}
    if objective.has_heads and objective.ibot_head != "shared":
        heads["ibot_head"] = objective.ibot_head_sizes
    model = recipe.model
    of_backbone = (
        _transformer(model, recipe.augmentation.global_px) if isinstance(model, ModelConfig) else parameters(model)
    )
    shapes = {f"backbone.{name}": shape for name, shape in of_backbone}
    for head, sizes in heads.items():
        shapes |= {f"{head}.{name}": shape for name, shape in _head(dim, sizes, objective.prototype_layer)}
    if isinstance(objective, DistillObjectiveConfig):
        for name, inputs, outputs in student_layers(dim, objective):
            shapes |= _linear(name, inputs, outputs)
    return shapes


def student_layers(dim: int, objective: DistillObjectiveConfig) -> Iterator[tuple[str, int, int]]:
    """Linear layers that only students have: name, inputs and outputs."""
    width, classes = objective.teacher_width or 0, objective.labels.classes or 0
    if objective.features.weight:
        yield "feature_head.patches", dim, width
    if objective.features.weight and objective.features.class_weight:
        yield "feature_head.cls", dim, width
    if objective.labels.weight:
        yield "label_head.cls", dim, classes
    if objective.has_label_token:
        yield "label_head.token", dim, classes
        yield "label_head.teacher", width, classes


def parameter_sizes(recipe: NetworkRecipe) -> dict[str, int]:
    """Elements of each parameter, by name."""
    return {name: math.prod(shape) for name, shape in parameter_shapes(recipe).items()}


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, dim: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (dim,)
    yield f"{name}.bias", (dim,)


def _transformer(model: ModelConfig, global_px: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    dim = model.embed_dim
    yield "cls_token", (1, 1, dim)
    if model.rotary is None:
        yield "pos_embed", (1, 1 + (global_px // model.patch_px) ** 2, dim)
    yield "mask_token", (1, dim)
    if model.registers:
        yield "register_tokens", (1, model.registers, dim)
    yield "patch_embed.proj.weight", (dim, model.channels, model.patch_px, model.patch_px)
    yield "patch_embed.proj.bias", (dim,)
    for index in range(model.depth):
        for name, shape in _block(model):
            yield f"blocks.{index}.{name}", shape
    yield from _norm("norm", dim)
    if model.untied_norms in ("cls", "both"):
        yield from _norm("cls_norm", dim)
    if model.untied_norms in ("local_cls", "both"):
        yield from _norm("local_cls_norm", dim)


def _block(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    dim, hidden = model.embed_dim, model.ffn_hidden
    yield from _norm("norm1", dim)
    yield from _linear("attn.qkv", dim, 3 * dim)
    yield from _linear("attn.proj", dim, dim)
    yield "ls1.gamma", (dim,)
    yield from _norm("norm2", dim)
    first, last, width = ("mlp.fc1", "mlp.fc2", hidden) if model.ffn == "mlp" else ("mlp.w12", "mlp.w3", 2 * hidden)
    yield from _linear(first, dim, width)
    yield from _linear(last, hidden, dim)
    yield "ls2.gamma", (dim,)


def _head(dim: int, sizes: HeadSizes, layer: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _linear("mlp.0", dim, sizes.hidden)
    yield from _linear("mlp.2", sizes.hidden, sizes.hidden)
    yield from _linear("mlp.4", sizes.hidden, sizes.bottleneck)
    if layer == "weight_norm":
        yield "last_layer.weight_g", (sizes.prototypes, 1)
        yield "last_layer.weight_v", (sizes.prototypes, sizes.bottleneck)
    else:
        yield "last_layer.weight", (sizes.prototypes, sizes.bottleneck)

"""Bytes that a worker's device holds, by part, from the recipe alone.

State (parameters, optimizer, teacher) is exact but for DeepSpeed's padding of shards; a test holds it against a real
engine. Activations are an estimate of what autograd keeps of one slot's forward pass, within a quarter of what it
keeps of a small model without activation checkpointing (a test). Not counted: the CUDA context (about 0.5 GiB),
fragmentation, NCCL's buffers.

Under autocast parameters, the residual stream and the results of norms are fp32, and products are computed from copies
in half precision.
"""

from dataclasses import asdict, dataclass

from heliostat.config.model import ModelConfig
from heliostat.config.network import NetworkRecipe
from heliostat.training.planning import convolution
from heliostat.training.planning.communication import is_persistent, kept_until_backward
from heliostat.training.planning.flops import LOGIT_CHUNK_BYTES, CropGroup, expected_masked, student_groups
from heliostat.training.planning.shapes import parameter_sizes

BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's ``reduce_bucket_size``: its buffer is as large whatever the model is."""
_FP32 = 4
_LOGITS_BUFFERS = 2


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one worker's device, while the backward pass begins."""

    parameters_bytes: float
    """The student's as the forward pass uses them; in stage 3 the shards and what is gathered at a time."""
    gradients_bytes: float
    optimizer_bytes: float
    """Adam's moments and, from stage 1 on, the fp32 shard that is updated."""
    teacher_bytes: float
    """EMA teacher, and the Gram teacher where there is one."""
    buffers_bytes: float
    """DeepSpeed's buckets, copies of weights in half precision, the prototypes' gradients and chunks of logits."""
    activations_bytes: float
    host_bytes: float
    """In host memory, with ``training.offload_optimizer``."""

    @property
    def device_bytes(self) -> float:
        """All that is on the device."""
        return sum((size for name, size in asdict(self).items() if name != "host_bytes"), start=0.0)


def worker_memory(recipe: NetworkRecipe, workers: int) -> Memory:
    """What one of so many workers holds."""
    training, sizes = recipe.training, parameter_sizes(recipe)
    stage, whole = training.zero_stage, _FP32 * sum(sizes.values())
    shard = _FP32 * sum(-(-size // workers) for size in sizes.values())
    parameters, teacher = float(whole), float(whole)
    if stage == 3:
        at_once = kept_until_backward(recipe) | {name for name, size in sizes.items() if is_persistent(size)}
        parameters, teacher = shard + _FP32 * sum(sizes[name] for name in at_once), float(shard)
    if recipe.objective.anchoring is not None:
        teacher += _FP32 * sum(size for name, size in sizes.items() if name.startswith("backbone."))
    optimizer = 2 * whole if stage == 0 else 3 * shard
    offloaded = optimizer + shard if training.offload_optimizer else 0  # with the gradients it is updated by
    return Memory(
        parameters_bytes=parameters,
        gradients_bytes={0: whole, 1: whole + shard, 2: shard, 3: shard}[stage],
        optimizer_bytes=0 if training.offload_optimizer else optimizer,
        teacher_bytes=teacher,
        buffers_bytes=_buckets(stage) + _copies(recipe) + _loss_buffers(recipe),
        activations_bytes=activations_bytes(recipe),
        host_bytes=offloaded,
    )


def frozen_bytes(recipe: NetworkRecipe, workers: int, *, heads_alone: bool = False) -> float:
    """Of a network that learns nothing: whole on every worker, but for stage 3; ``heads_alone`` has no backbone."""
    named = parameter_sizes(recipe).items()
    sizes = [size for name, size in named if not (heads_alone and name.startswith("backbone."))]
    return float(_FP32 * sum(-(-size // workers) if recipe.training.zero_stage == 3 else size for size in sizes))


def _buckets(stage: int) -> float:
    """Stages 1 and 2 have two of them, to overlap communication; stage 3 has one."""
    return {0: 0, 1: 2, 2: 2, 3: 1}[stage] * BUCKET_ELEMENTS * _FP32


def product_bytes(recipe: NetworkRecipe) -> int:
    """Of a number that a product takes or gives."""
    return 4 if recipe.training.precision == "fp32" else 2


def _copies(recipe: NetworkRecipe) -> float:
    """Autocast keeps the weights of linear layers in half precision from the forward to the backward pass."""
    size = product_bytes(recipe)
    if size == _FP32:
        return 0
    return size * sum(elements for name, elements in parameter_sizes(recipe).items() if name.endswith(".weight"))


def _loss_buffers(recipe: NetworkRecipe) -> float:
    """Per head: the prototypes' gradient in fp32, student's and teacher's rows as products take them, chunks."""
    objective, size = recipe.objective, product_bytes(recipe)
    if not objective.has_heads:
        return 0.0
    heads = [objective.dino_head_sizes]
    if objective.ibot_head != "shared":
        heads.append(objective.ibot_head_sizes)
    rows = 0 if size == _FP32 else 2 * size
    of_heads = sum((_FP32 + rows) * head.prototypes * head.bottleneck for head in heads)
    return of_heads + _LOGITS_BUFFERS * LOGIT_CHUNK_BYTES


def activations_bytes(recipe: NetworkRecipe) -> float:
    """What autograd keeps of the student's forward pass on one slot."""
    model, size, mode = recipe.model, product_bytes(recipe), recipe.training.activation_checkpointing
    groups = student_groups(recipe)
    if not isinstance(model, ModelConfig):
        sides = (recipe.augmentation.global_px, recipe.augmentation.local_px)
        crops = [(group.crops, px) for group, px in zip(groups, sides, strict=True)]
        resized = _FP32 * model.embed_dim * groups[0].crops * groups[0].patches
        return convolution.kept_bytes(model, crops, size, mode) + resized + _outside(recipe, groups, size)
    kept = sum(group.kept * group.tokens for group in groups)
    stream = _FP32 * model.embed_dim * sum(group.crops * group.tokens for group in groups)
    used = sum(group.kept + group.wanted_patches * group.kept / max(1, group.crops) for group in groups)
    inside, last = _block(model, size, kept, kept), _block(model, size, kept, used)
    if recipe.training.learns_by_heads_alone:
        return inside + _outside(recipe, groups, size)  # nothing of the backbone is kept
    if mode == "full":
        blocks = model.depth * stream + inside  # the inputs of each, and one that is being recomputed
    elif mode == "selective":
        products = kept * size * _kept_products(model)
        blocks = model.depth * (stream + products) + inside - products
    else:
        blocks = (model.depth - 1) * inside + last
    return blocks + model.depth * _folded_weights(model, size) + _outside(recipe, groups, size)


def _block(model: ModelConfig, size: int, attended: float, fed: float) -> float:
    """One block: inputs of norms and products, queries, keys and values, what the feed-forward layers are made of."""
    dim, hidden = model.embed_dim, model.ffn_hidden
    attention = attended * (_FP32 + 4 * size) * dim + fed * size * dim
    gates = 2 if model.ffn == "mlp" else 4
    return attention + fed * ((_FP32 + size) * dim + gates * size * hidden)


def _kept_products(model: ModelConfig) -> int:
    """Elements per token that selective checkpointing keeps: results of products and of attention."""
    inner = model.ffn_hidden * (1 if model.ffn == "mlp" else 2)
    return 3 * model.embed_dim + 3 * model.embed_dim + inner


def _folded_weights(model: ModelConfig, size: int) -> float:
    """LayerScale times the last weight of each branch."""
    return size * model.embed_dim * (model.embed_dim + model.ffn_hidden)


def _outside(recipe: NetworkRecipe, groups: tuple[CropGroup, ...], size: int) -> float:
    """Crops, and what the heads keep: inputs and results of their layers."""
    augmentation, model, objective = recipe.augmentation, recipe.model, recipe.objective
    pixels = groups[0].crops * augmentation.global_px**2 + groups[1].crops * augmentation.local_px**2
    rows = ((objective.dino_head_sizes, sum(group.crops for group in groups)),)
    rows += ((objective.ibot_head_sizes, expected_masked(recipe)),)  # type: ignore[assignment]
    heads = sum(n * size * (model.embed_dim + 4 * head.hidden + 2 * head.bottleneck) for head, n in rows)
    return _FP32 * pixels * model.channels + (heads if objective.has_heads else 0)

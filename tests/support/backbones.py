"""Small backbones with weights that matter everywhere, and a run that has committed one."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from heliostat.checkpoint.format import CheckpointManifest, StateSlice, checkpoint_folder, tensor_name
from heliostat.checkpoint.log import CommitLog
from heliostat.checkpoint.writer import commit, write_shard
from heliostat.config import load_recipe, lock
from heliostat.config.convnext import ConvNextConfig
from heliostat.config.model import ModelConfig
from heliostat.models.backbones import Backbone
from heliostat.models.convnext import ConvNext
from heliostat.models.tokens import Tokens
from heliostat.models.vit import VisionTransformer
from heliostat.storage import Store, open_store

GRID, PATCH_PX = 5, 14
PX = GRID * PATCH_PX
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"registers": 4},
    "swiglu": {"ffn": "swiglu"},
    "swiglu with registers": {"ffn": "swiglu", "registers": 4},
}
ROTARY: dict[str, Any] = {"registers": 4, "position": "rope", "untied_norms": "both"}
CONVOLUTIONAL: dict[str, Any] = {"arch": "convnext_custom", "depths": (1, 2, 3, 1), "dims": (8, 16, 24, 32)}
RUN_MODEL: dict[str, Any] = {"arch": "custom", "embed_dim": 64, "depth": 2, "heads": 2, "registers": 2}


def small_backbone(seed: int = 0, grid: int = GRID, **model: Any) -> VisionTransformer:
    """64 wide, two blocks; random weights whose every part changes the output."""
    values = {"arch": "custom", "embed_dim": 64, "depth": 2, "heads": 1, **model}
    backbone = VisionTransformer(ModelConfig.model_validate(values), grid)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1, generator=generator)
            if name.endswith("gamma"):
                parameter.add_(0.7)
    return backbone.eval()


def small_convnext(seed: int = 0, grid: int = 4, **model: Any) -> ConvNext:
    """Random weights whose every part changes the output."""
    backbone = ConvNext(ConvNextConfig.model_validate({**CONVOLUTIONAL, **model}), grid)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            is_scale = parameter.dim() == 1 and not name.endswith("bias")
            parameter.normal_(1.0 if is_scale else 0.0, 0.2, generator=generator)
    return backbone.eval()


def images(*sides: int, count: int = 2, channels: int = 3, seed: int = 1) -> Tensor:
    """Random normalised images of one or two given sides."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, sides[0], sides[-1], generator=generator)


@torch.no_grad()
def tokens_of(backbone: Backbone, images_BCHW: Tensor) -> Tokens:
    """The outputs for images of one size."""
    groups: list[Tokens] = backbone([images_BCHW])
    return groups[0]


def transformer(backbone: Backbone) -> VisionTransformer:
    """The backbone, which must be one."""
    assert isinstance(backbone, VisionTransformer)
    return backbone


def sequence(tokens: Tokens) -> Tensor:
    """Class token, registers, patches: as other libraries give them."""
    return torch.cat([tokens.cls_BD.unsqueeze(1), tokens.registers_BRD, tokens.patches_BND], 1)


def same_weights(one: Backbone, other: Backbone) -> bool:
    """Whether all tensors are equal, by name and to the bit."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def write_run(root: Path, name: str, teachers: dict[int, VisionTransformer], workers: int = 2) -> Store:
    """A run whose checkpoints, by step, hold these teachers beside a head; each worker wrote a part of each tensor."""
    recipe = root / "recipe.yaml"
    root.mkdir(parents=True, exist_ok=True)
    described = {
        "kind": "pretrain",
        "name": name,
        "dataset": {"name": "none"},
        "model": RUN_MODEL,
        "augmentation": {"global_px": PX, "local_px": 42},
        "training": {"steps": 10},
    }
    recipe.write_text(yaml.safe_dump(described))
    store = open_store(str(root / "runs" / name))
    store.put(
        "config.lock.json", json.dumps({**lock(load_recipe(recipe, [], {})), "manifests": {"none": "ab" * 32}}).encode()
    )
    log = CommitLog(store)
    lease = log.acquire_lease("test")
    for step, teacher in teachers.items():
        state = {f"backbone.{key}": tensor for key, tensor in teacher.state_dict().items()}
        flat = {key: tensor.flatten() for key, tensor in (state | {"dino_head.mlp.0.bias": torch.ones(8)}).items()}
        shards = []
        for rank in range(workers):
            slices = [_part(key, tensor, rank, workers) for key, tensor in flat.items()]
            shards.append(write_shard(store, checkpoint_folder(step, lease.attempt), rank, slices))
        manifest = CheckpointManifest(
            step=step,
            attempt=lease.attempt,
            world_size=workers,
            shards=tuple(shards),
            tensors={tensor_name("teacher", key): tensor.numel() for key, tensor in flat.items()},
            counters={},
            digest_of_ids="",
        )
        commit(store, log, lease, manifest)
    return store


def _part(key: str, tensor: Tensor, rank: int, workers: int) -> StateSlice:
    start, stop = (tensor.numel() * part // workers for part in (rank, rank + 1))
    return StateSlice("teacher", key, start, tensor[start:stop])

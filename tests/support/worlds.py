"""Training worlds for tests: the product's step under DeepSpeed in plain processes, on generated images."""

import datetime
import hashlib
import io
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from support.slots import masks_of
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.data.order import SampleOrder
from heliostat.data.samples import Samples, WorkerShare
from heliostat.data.slots import SlotPlan
from heliostat.objectives.engine import MASTER, MOMENTS, Engine
from heliostat.objectives.networks import Network
from heliostat.objectives.step import TrainingStep
from heliostat.objectives.step_state import StepState
from heliostat.training.feed import StepInput, prepare_slot, slot_batch
from heliostat.training.state import owned_slices

CPU_DEVICE = torch.device("cpu")
PRELOADED = ["deepspeed", "torch._dynamo", "torch._inductor.compile_fx", "heliostat.training.zero", "pyarrow.parquet"]
"""What every worker imports, sooner or later."""
IMAGES = 96
ORDER = SampleOrder("ab" * 32, seed=7, group_rows=(16,) * 6, window_groups=2)


def tiny_recipe(objective: Mapping[str, Any] | None = None, **training: Any) -> PretrainRecipe:
    """A ViT of two blocks that learns within a few steps; 4 slots of 4 images."""
    return PretrainRecipe.model_validate(
        {
            "kind": "pretrain",
            "name": "tiny",
            "seed": 7,
            "dataset": {"name": "tiny", "window_groups": 2},
            "model": {
                "arch": "custom",
                "embed_dim": 32,
                "depth": 2,
                "heads": 2,
                "patch_px": 4,
                "layer_scale": 1.0,
                "drop_path": 0.1,
            },
            "augmentation": {"global_px": 16, "local_px": 8, "local_count": 2, "blur": "none"},
            "objective": {
                "prototypes": 48,
                "head_hidden": 32,
                "head_bottleneck": 16,
                "teacher_temperature": 0.04,
                "teacher_temperature_warmup_steps": 0,
                **(objective or {}),
            },
            "training": {
                "steps": 20,
                "global_batch": 16,
                "slot_batch": 4,
                "base_lr": 0.016,
                "warmup_steps": 2,
                "freeze_prototypes_steps": 0,
                "ema_momentum": 0.9,
                "precision": "fp32",
                **training,
            },
        }
    )


@lru_cache(maxsize=1)
def encoded_images() -> list[bytes]:
    """PNG files of smooth coloured noise."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(IMAGES):
        small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((30, 24), Image.Resampling.BICUBIC).save(buffer, "PNG")
        images.append(buffer.getvalue())
    return images


def samples_at(positions: list[int]) -> Samples:
    """The samples at positions of the run, as the stream would bring them."""
    images = [encoded_images()[int(ORDER.positions(position, 1)[0])] for position in positions]
    ids = [hashlib.sha256(data).hexdigest() for data in images]
    return Samples(positions, ids, images, labels=[int(name[0], 16) % 4 - 1 for name in ids])  # a quarter has none


def prepare_step(recipe: TrainingRecipe, plan: SlotPlan, rank: int, step: int, samples: Samples) -> StepInput:
    """A worker's samples of a step, split into its slots."""
    size = recipe.training.slot_batch
    slots = [
        prepare_slot(recipe, step, slot, samples.part(index * size, (index + 1) * size))
        for index, slot in enumerate(plan.slots_of(rank))
    ]
    return StepInput(step, slots)


def step_input(recipe: TrainingRecipe, plan: SlotPlan, rank: int, step: int) -> StepInput:
    """What a worker is fed at a step."""
    share = WorkerShare(plan, rank, recipe.training.slot_batch)
    return prepare_step(recipe, plan, rank, step, samples_at(share.positions(step)))


@dataclass
class Trace:
    """What one worker saw and ended with."""

    terms: list[dict[str, float]] = field(default_factory=list)
    norms: list[dict[str, float]] = field(default_factory=list)
    slots: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)
    """(step, slot) to digests of its ids, crops and masks."""
    student: dict[str, Tensor] = field(default_factory=dict)
    """Its parameters, flat."""
    moments: dict[str, Tensor] = field(default_factory=dict)
    teacher: dict[str, Tensor] = field(default_factory=dict)
    """The teacher and what else is no part of the student, by ``kind|name``."""


def slot_digests(step: StepInput, plan: SlotPlan, rank: int) -> dict[tuple[int, int], dict[str, str]]:
    """Digests of everything random in a worker's slots."""

    def sha(*arrays: Any) -> str:
        return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()

    return {
        (step.step, slot): {
            "ids": ",".join(item.ids),
            "crops": sha(item.crops.global_crops, item.crops.local_crops),
            "masks": sha(masks_of(item).numpy()),
            "drops": sha(*[index.numpy() for block in item.drops or [] for branch in block for index in branch]),
        }
        for slot, item in zip(plan.slots_of(rank), step.slots, strict=True)
    }


def train(recipe: PretrainRecipe, engine: Any, steps: range, teacher: Network, trace: Trace) -> Trace:
    """Run steps on one worker."""
    training = TrainingStep(recipe, engine, teacher)
    for step in steps:
        prepared = step_input(recipe, training.plan, engine.rank, step)
        trace.slots.update(slot_digests(prepared, training.plan, engine.rank))
        result = training.run(step, [slot_batch(slot, torch.device("cpu")) for slot in prepared.slots])
        trace.terms.append(result.terms)
        trace.norms.append(result.gradient_norms)
    note_state(trace, training, engine)
    return trace


def note_state(trace: Trace, training: StepState, engine: Engine) -> None:
    """Put the whole state of a training into a trace, wherever workers have its parts; all workers call it."""
    state = whole_state(training, engine)
    trace.student = {name.split("|")[1]: values for name, values in state.items() if name.startswith(f"{MASTER}|")}
    trace.moments = {name: values for name, values in state.items() if name.startswith(MOMENTS)}
    trace.teacher = {name: values for name, values in state.items() if not name.startswith((MASTER, *MOMENTS))}


def whole_state(training: StepState, engine: Engine) -> dict[str, Tensor]:
    """All tensors of a training's state, flat, by ``kind|name``, put together from all workers' shares."""
    mine = [(each.tensor, each.offset, each.values.detach().clone()) for each in owned_slices(training)]
    shares: list[Any] = [mine]
    if engine.world_size > 1:
        shares = [None] * engine.world_size
        dist.all_gather_object(shares, mine)
    state = {name: torch.full((numel,), torch.nan) for name, numel in training.tensor_sizes().items()}
    for name, offset, values in (part for share in shares for part in share):
        state[name][offset : offset + len(values)] = values
    return state


def new_networks(recipe: PretrainRecipe) -> tuple[Network, Network]:
    """Student and teacher at the start of a run."""
    student, teacher = Network(recipe), Network(recipe)
    student.init_weights(recipe.seed)
    teacher.load_state_dict(student.state_dict())
    return student, teacher


def run_world(world_size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run ``work(rank, world_size, *arguments)`` in ``world_size`` processes joined by gloo; the results by rank.

    They are forks of a server that has imported DeepSpeed once and done nothing else: an import takes longer than most
    works.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        forkserver.set_forkserver_preload(PRELOADED)
        with patch.dict(os.environ, DS_ACCELERATOR="cpu"):  # DeepSpeed looks when the server imports it
            forkserver.ensure_running()
        given = (world_size, port, folder, dict(os.environ), work, arguments)
        start_processes(_worker, given, nprocs=world_size, start_method="forkserver")
        return [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)
        ]  # written a moment ago by this test's own processes


def _worker(
    rank: int,
    world_size: int,
    port: int,
    folder: str,
    environment: dict[str, str],
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(
        environment,
        DS_ACCELERATOR="cpu",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size, timeout=datetime.timedelta(seconds=60))
    try:
        torch.save(work(rank, world_size, *arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()

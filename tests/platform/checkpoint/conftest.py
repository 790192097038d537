"""A small training state, a way to save it from any number of ranks, and stores to save it in."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from heliostat.checkpoint.assembly import Draft, assemble, write_part
from heliostat.checkpoint.format import StateSlice
from heliostat.checkpoint.log import CheckpointEntry, CommitLog, Lease, live_checkpoints
from heliostat.storage import Store, open_store

State = dict[tuple[str, str], torch.Tensor]
Save = Callable[..., CheckpointEntry]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "runs" / "r"))


@pytest.fixture
def state() -> Callable[[int], State]:
    """The state at a step: two kinds of three tensors, 57 elements each kind, other values at each step."""
    return _state


def _state(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    sizes = {"patch_embed.weight": 30, "head.bias": 7, "norm.weight": 20}
    return {
        (kind, parameter): torch.randn(numel, generator=generator)
        for kind in ("fp32", "exp_avg")
        for parameter, numel in sizes.items()
    }


@pytest.fixture
def save(state: Callable[[int], State]) -> Save:
    """Save and commit ``state(step)`` from ``world_size`` ranks, each tensor cut evenly among them."""

    def save(store: Store, log: CommitLog, lease: Lease, step: int, world_size: int = 2) -> CheckpointEntry:
        draft = Draft(
            step=step,
            attempt=lease.attempt,
            world_size=world_size,
            tensors={f"{kind}|{parameter}": len(values) for (kind, parameter), values in state(step).items()},
            counters={"optimizer_step": step, "loss_scale": 65536.0, "dtype": "fp32"},
            digest_of_ids=f"digest-{step}",
        )
        for rank in range(world_size):
            slices = []
            for (kind, parameter), values in state(step).items():
                share = -(-len(values) // world_size)
                slices.append(
                    StateSlice(kind, parameter, rank * share, values[rank * share : (rank + 1) * share].clone())
                )
            write_part(store, draft, rank, slices)
        assemble(store, log, lease, draft, {"loss": 1.0 / (step + 1)})
        return live_checkpoints(log.read())[-1]

    return save

"""What the platform adds to a training step, and how fast checkpoints are written and read.

A run of one worker on Ray and DeepSpeed (bf16, ViT of 6 blocks of width 384, 8,192 prototypes, 2 slots of 8 images,
one thread), fed with photographs of ``clothing_cc0`` below ``HELIOSTAT_TEST_DATA`` or, without it, generated ones.

Ratios:
    overhead: smaller is better: what the platform's step takes beyond the bare one (``trainer_turns.py``), without
        waiting for checkpoints. Wanted: at most 0.03. ``details.rest_ms`` says where it goes.
    checkpoint_blocking: smaller is better: share of the time between checkpoints in which training waits for one.
        Wanted: at most 0.01. Checkpoints are so close here that every turn has one.
    save_vs_disk: MB/s of our writer (hashes, syncs, publishes) over a plain writer's that syncs too.
    load_vs_disk: MB/s of our reader, which verifies every byte, over a plain reader's that hashes too.
    save_vs_s3: MB/s of our writer over boto3's ``upload_file`` on the same SeaweedFS on loopback.

``details.save_peak_over_state`` is the host memory that a save takes, over the size of the state (``save_memory.py``).
Wanted: at most 1.2; the copy is 1.

Floor: a step cannot take less than the bare one; ``floor_fraction`` is the bare step over the platform's.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_files import measure_files, measure_s3
from frame import RUNS, BenchResult, Spread, run_bench, significant, tell
from heliostat.data.ingest import ingest
from heliostat.storage import open_store
from heliostat.training.attempt import RunSpec
from heliostat.training.trainer import CPU_WORKER_ENV
from heliostat_cluster.local import local_ray
from photographs import photographs
from s3_server import s3_environment, s3_server
from trainer_turns import WARM_UP_STEPS, Turn, measure_turns, read_turns, recipe_of, rest_of

_PHOTOGRAPHS = 512
_DATASET = "photographs"
_BYTES_PER_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured."""

    turns: int
    turn_steps: int
    state_mib: int
    file_turns: int


QUICK = Amount(2, 20, 256, 2)
FULL = Amount(RUNS, 20, 512, RUNS)


def measure_overhead(scratch: Path, amount: Amount) -> list[Turn]:
    """Turns of a run of its own."""
    (scratch / "generated").mkdir()
    paths, images_from = photographs(scratch / "generated", _PHOTOGRAPHS)
    source = scratch / "source"
    source.mkdir()
    for path in paths:
        shutil.copy(path, source)
    root = scratch / "root"
    steps = WARM_UP_STEPS + amount.turns * amount.turn_steps
    recipe = recipe_of(str(root), _DATASET, steps, amount.turn_steps)
    with local_ray(num_cpus=2):
        result = ingest(source, open_store(str(root)), _DATASET)
        tell(f"{result.images} images ({images_from}); {steps} steps of the platform, and bare ones in turns")
        answer = scratch / "answer.json"
        _fit(RunSpec(recipe, open_store(str(root)), {_DATASET: result.manifest_sha256}), amount.turn_steps, answer)
    return read_turns(answer)


def _fit(spec: RunSpec, turn_steps: int, answer: Path) -> None:
    """A worker as a run has it; only its loop is another one."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    here = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**CPU_WORKER_ENV, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    TorchTrainer(
        measure_turns,
        train_loop_config={"spec": spec, "turn_steps": turn_steps, "answer": str(answer)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(answer.parent), worker_runtime_env={"env_vars": environment}),
    ).fit()


def measure(quick: bool) -> BenchResult:
    """The bench."""
    amount = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        turns = measure_overhead(scratch, amount)
        files = measure_files(scratch, amount.state_mib * _BYTES_PER_MIB, amount.file_turns)
        with s3_server(scratch / "s3") as endpoint:
            os.environ.update(s3_environment(endpoint))
            files |= measure_s3(endpoint, scratch, amount.state_mib * _BYTES_PER_MIB // 4, amount.file_turns)
        command = [sys.executable, str(Path(__file__).with_name("save_memory.py")), str(scratch / "memory")]
        found = subprocess.run([*command, str(amount.state_mib)], stdout=subprocess.PIPE, text=True, check=True)
    return result_of(turns, files, float(found.stdout))


def result_of(turns: list[Turn], files: dict[str, Spread], save_peak: float) -> BenchResult:
    """Ratios of what was measured."""
    ratios = {
        "overhead": Spread(tuple(turn.overhead for turn in turns)),
        "checkpoint_blocking": Spread(tuple(turn.blocking for turn in turns)),
        "save_vs_disk": files["save"].over(files["plain_write"]),
        "load_vs_disk": files["load"].over(files["plain_read_and_hash"]),
        "save_vs_s3": files["save_s3"].over(files["plain_upload"]),
    }
    bare = Spread(tuple(1000 * turn.bare_s / turn.steps for turn in turns))
    platform = Spread(
        tuple(1000 * (turn.platform_s - turn.phases.get("checkpoint_s", 0.0)) / turn.steps for turn in turns)
    )
    measured: dict[str, Any] = {
        "bare step": bare.summary("ms"),
        "platform's step": platform.summary("ms"),
        **{name: spread.summary("ratio") for name, spread in ratios.items()},
        **{name: spread.summary("MiB/s") for name, spread in files.items()},
    }
    rest = {name: significant(ms) for name, ms in rest_of(turns).items()}
    notes = [f"A save takes {save_peak:.3f} times the state's size of host memory, its copy included."]
    notes += ["Beyond the bare step, ms per step: " + ", ".join(f"{name} {ms}" for name, ms in rest.items()) + "."]
    return BenchResult(
        bench="trainer",
        ratios={name: spread.median for name, spread in ratios.items()},
        floor_fraction=bare.over(platform).median,
        details={
            "measured": measured,
            "rest_ms": rest,
            "save_peak_over_state": significant(save_peak),
            "notes": notes,
        },
    )


if __name__ == "__main__":
    run_bench("trainer", __doc__, measure)

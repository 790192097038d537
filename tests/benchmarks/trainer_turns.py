"""The platform's step beside the bare one, in one worker of a real run: part of bench_trainer.py.

A worker of a run makes some steps as it always does (feed, votes, step, ledger, metrics, checkpoints), then as many
bare ones: ``TrainingStep.run`` on slots that lie ready on the device. In turns, so that both see the same machine.
"""

import json
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heliostat.config.pretrain import PretrainRecipe
from heliostat.objectives.networks import SlotBatch
from heliostat.objectives.step_state import StepResult
from heliostat.observe.logs import configure_logging
from heliostat.training import attempt
from heliostat.training.attempt import AttemptWorker, RayWorker, RunSpec, StepSource
from heliostat.training.ledger import SampleLedger

WARM_UP_STEPS = 6
"""Before the first turn: the feed fills, memory settles."""
_OWN_PHASES = ("data_wait_s", "checkpoint_s")
"""Of the platform; the others are parts of the bare step too."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Some steps of the platform and as many bare ones."""

    steps: int
    platform_s: float
    bare_s: float
    phases: dict[str, float]
    """Of the platform's steps, in seconds."""

    @property
    def overhead(self) -> float:
        """Of the platform over the bare step, without what it waits for checkpoints."""
        return (self.platform_s - self.phases.get("checkpoint_s", 0.0)) / self.bare_s - 1

    @property
    def blocking(self) -> float:
        """Share of the platform's time that waits for checkpoints."""
        return self.phases.get("checkpoint_s", 0.0) / self.platform_s


class _TurnsWorker(AttemptWorker):
    """Makes a turn of bare steps after every turn of its own."""

    def __init__(self, spec: RunSpec, stack: ExitStack, turn_steps: int) -> None:
        super().__init__(spec, RayWorker(), stack)
        self.turns: list[Turn] = []
        self._turn_steps = turn_steps
        self._slots: list[SlotBatch] = []
        self._made = 0
        self._platform_s = 0.0

    def _train_step(self, step: int, feed: StepSource, ledger: SampleLedger) -> StepResult:
        started_s = time.perf_counter()
        result = super()._train_step(step, feed, ledger)
        self._platform_s += time.perf_counter() - started_s
        self._made += 1
        if self._made == WARM_UP_STEPS:
            self._begin_turn()
        elif self._made > WARM_UP_STEPS and (self._made - WARM_UP_STEPS) % self._turn_steps == 0:
            self._end_turn(step)
        return result

    def _begin_turn(self) -> None:
        self._reporter.clock.read()
        self._platform_s = 0.0

    def _end_turn(self, step: int) -> None:
        phases = self._reporter.clock.read()
        started_s = time.perf_counter()
        for _ in range(self._turn_steps):
            self.training.run(step, self._slots)
        bare_s = time.perf_counter() - started_s
        self.turns.append(Turn(self._turn_steps, self._platform_s, bare_s, phases))
        self._begin_turn()


def _kept(worker: _TurnsWorker) -> Any:
    """``slot_batch``, which also keeps the slots of the newest step for the bare ones."""
    plain = vars(attempt)["slot_batch"]

    def slot_batch(slot: Any, device: Any) -> SlotBatch:
        batch: SlotBatch = plain(slot, device)
        worker._slots = [*worker._slots, batch][-len(worker._plan.slots_of(0)) :]
        return batch

    return slot_batch


def measure_turns(config: dict[str, Any]) -> None:
    """Ray Train's entry: ``spec``, ``turn_steps`` and the file for the answer."""
    configure_logging()
    with ExitStack() as stack:
        worker = _TurnsWorker(config["spec"], stack, config["turn_steps"])
        vars(attempt)["slot_batch"] = _kept(worker)
        for _ in worker.steps():
            pass
    Path(config["answer"]).write_text(json.dumps([asdict(turn) for turn in worker.turns]))


def read_turns(answer: Path) -> list[Turn]:
    """What ``measure_turns`` has written."""
    return [Turn(**each) for each in json.loads(answer.read_text())]


def rest_of(turns: list[Turn]) -> dict[str, float]:
    """Where the platform's time goes that is no part of the bare step, in milliseconds per step."""
    phases: Counter[str] = sum((Counter(turn.phases) for turn in turns), Counter())
    steps = sum(turn.steps for turn in turns)
    measured = {name: 1000 * phases[name] / steps for name in _OWN_PHASES}
    others = sum(turn.platform_s - sum(turn.phases.values()) for turn in turns)
    return {**measured, "ledger, metrics, crops to the device": 1000 * others / steps}


def recipe_of(root: str, dataset: str, steps: int, checkpoint_steps: int) -> PretrainRecipe:
    """A ViT whose step takes about a second on two cores, of two slots."""
    return PretrainRecipe.model_validate(
        {
            "kind": "pretrain",
            "name": f"bench-{steps}",
            "root": root,
            "dataset": {"name": dataset, "window_groups": 2},
            "model": {
                "arch": "custom",
                "embed_dim": 384,
                "depth": 6,
                "heads": 6,
                "patch_px": 14,
                "drop_path": 0.1,
            },
            "augmentation": {"global_px": 112, "local_px": 56, "local_count": 4},
            "objective": {"prototypes": 8192, "head_hidden": 1024, "head_bottleneck": 256},
            "training": {"steps": steps, "global_batch": 16, "slot_batch": 8, "precision": "bf16", "warmup_steps": 10},
            "scaling": {"workers": 1},
            "checkpoint": {"every_steps": checkpoint_steps, "keep_last": 1},
            "observe": {"log_every_steps": 10_000, "flush_interval_s": 1.0},
        }
    )

"""Implementations of the training step beside each other: the same loss and gradients first, then the clock."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from frame import Spread, in_turns, tell
from step_processes import Worker, platform_environment, workers
from step_sizes import Precision, Size, prepared_slot, step_flops
from step_worker import Ended, Job, Kind, Ran, Started

COMPARED_STEPS = 3
TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "bf16": 3e-2}
"""Relative, on loss terms and gradient norms: rounding differs, and bf16 keeps eight bits."""
_SMALLEST = 1e-6
_TELL_EVERY_S = 10.0


Candidates = Mapping[str, tuple[Kind, Size]]


class DisagreementError(ValueError):
    """Two implementations do not compute the same, so that their times say nothing."""


class Progress:
    """How much of the whole bench is done, in operations; bf16 ones count half."""

    def __init__(self, total: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._done = 0.0
        self._clock = clock
        self._started = self._told = clock()

    def did(self, what: str, work: float) -> None:
        """Count some work; tell of it now and then."""
        self._done += work
        now = self._clock()
        if now - self._told < _TELL_EVERY_S:
            return
        self._told = now
        elapsed = now - self._started
        left = (
            _clock(elapsed * max(0.0, self._total / self._done - 1)) if self._done > self._total / 20 else "unknown yet"
        )
        tell(f"{what}; {_clock(elapsed)}, ETA {left}")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Candidates that are measured in turns with each other, on one size in one precision."""

    label: str
    size: Size
    precision: Precision
    candidates: Candidates
    """By name; sizes may differ in what does not change the mathematics."""
    environment: Mapping[str, str]
    runs: int
    device: str = "cpu"
    compared_steps: int = COMPARED_STEPS

    @property
    def flops(self) -> int:
        """Operations of one plain step."""
        return step_flops(self.size, prepared_slot(self.size.recipe(self.precision)))

    @property
    def work(self) -> float:
        """Of all candidates, for ``Progress``."""
        steps = self.compared_steps + self.runs * self.size.steps_per_turn
        return steps * self.work_per_step * sum(kind != "gemm" for kind, _ in self.candidates.values())

    @property
    def work_per_step(self) -> float:
        """Of one candidate, for ``Progress``."""
        return self.flops * (1.0 if self.precision == "fp32" else 0.5)


@dataclass(slots=True)
class Found:
    """What a plan's candidates did."""

    plan: Plan
    flops: int
    seconds: dict[str, Spread] = field(default_factory=dict)
    """Per step, of every candidate that steps."""
    rates: dict[str, Spread] = field(default_factory=dict)
    """GFLOP/s of every matrix product."""
    told: dict[str, list[Ran]] = field(default_factory=dict)
    """Of the first steps of every candidate that steps."""
    started: dict[str, Started] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)


def standard_candidates(size: Size) -> Candidates:
    """Ours, the reference, and matrix products."""
    return {"ours": ("ours", size), "reference": ("reference", size), "gemm": ("gemm", size)}


def measure_plan(plan: Plan, progress: Progress) -> Found:
    """Start the candidates, compare their first steps, measure in turns.

    Raises:
        DisagreementError: two do not compute the same.
        WorkerFailedError: a process of a candidate failed.
    """
    found = Found(plan, plan.flops)
    jobs = {name: Job(kind, size, plan.precision, plan.device) for name, (kind, size) in plan.candidates.items()}
    tell(f"{plan.label}: {found.flops / 1e9:.4g} GFLOP per step; starting {', '.join(jobs)}")
    with workers(jobs, plan.environment) as running:
        found.started = {name: worker.started() for name, worker in running.items()}
        for step in range(plan.compared_steps):
            for name, worker in running.items():
                if step and worker.job.kind == "gemm":
                    continue  # warm after the first
                found.told.setdefault(name, []).append(worker.run(1))
                progress.did(f"{plan.label}: first steps of {name}", _work_of(worker, plan.work_per_step))
        difference = compare(found.told, plan)
        if difference is not None:
            tell(f"{plan.label}: all agree to {difference:.1e} over {plan.compared_steps} steps")
        _measure(found, running, progress)
        found.ended = {name: worker.quit() for name, worker in running.items()}
    return found


def _work_of(worker: Worker, work: float) -> float:
    return 0.0 if worker.job.kind == "gemm" else work


def _measure(found: Found, running: Mapping[str, Worker], progress: Progress) -> None:
    plan = found.plan
    steps = plan.size.steps_per_turn
    total = 0.0
    rates: dict[str, list[float]] = {}

    def run(name: str, worker: Worker) -> None:
        nonlocal total
        ran = worker.run(1 if worker.job.kind == "gemm" else steps)
        total += ran.seconds
        for product, rate in ran.rates.items():
            rates.setdefault(product, []).append(rate)
        progress.did(f"{plan.label}: {name}", _work_of(worker, steps * plan.work_per_step))

    turns = {name: (lambda name=name, worker=worker: run(name, worker)) for name, worker in running.items()}
    # The first steps have warmed everything up. The clock is the workers' own: pipes cost nothing.
    costs = in_turns(turns, runs=plan.runs, warm_ups=0, clock=lambda: total)
    steppers = [name for name, worker in running.items() if worker.job.kind != "gemm"]
    found.seconds = {name: Spread(tuple(value / steps for value in costs[name].values)) for name in steppers}
    found.rates = {name: Spread(tuple(values)) for name, values in rates.items()}


def compare(told: Mapping[str, list[Ran]], plan: Plan) -> float | None:
    """The largest relative difference between the reference and any other candidate; None without others.

    Raises:
        DisagreementError: it is above the precision's tolerance.
    """
    others = [name for name, (kind, _) in plan.candidates.items() if kind == "ours"]
    if "reference" not in told or not others:
        return None
    largest = 0.0
    for name in others:
        for step, (mine, theirs) in enumerate(zip(told[name], told["reference"], strict=True)):
            difference = largest_difference(mine, theirs)
            if not difference <= TOLERANCE[plan.precision]:
                raise DisagreementError(f"{plan.label}, step {step}: {name} tells {mine}, the reference {theirs}")
            largest = max(largest, difference)
    return largest


def largest_difference(mine: Ran, theirs: Ran) -> float:
    """The largest relative difference of loss terms and gradient norms; infinite where a norm is missing."""
    if set(mine.norms) != set(theirs.norms):
        return float("inf")
    pairs = [(mine.terms[name], value) for name, value in theirs.terms.items()]
    pairs += [(mine.norms[name], value) for name, value in theirs.norms.items()]
    return max(abs(left - right) / max(abs(right), _SMALLEST) for left, right in pairs)


def platform_plan(name: str, size: Size, precision: Precision, runs: int) -> Plan:
    """Ours beside the reference in the platform's environment."""
    return Plan(f"{name} {precision}", size, precision, standard_candidates(size), platform_environment("cpu"), runs)

"""One implementation of the training step in a process of its own, driven line by line by ``step_processes.py``.

Peak memory belongs to a process, and implementations in one process would share an allocator. The argument is a
``Job`` as JSON. Each answer is one line of JSON on standard output: ``Started`` at once; ``Ran`` for a line ``run N``
(N steps); ``Ended`` for ``quit``, or silence at the end of the input. Whatever else is printed goes to standard error.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

import torch
from torch import Tensor, nn

from heliostat.models.linear import linear
from heliostat.objectives import single_process_step
from heliostat.objectives.networks import Network
from reference_step import ReferenceStep
from step_sizes import Precision, Size, prepared_slot, step_product

Kind = Literal["ours", "reference", "gemm"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_GEMM_SIDES = {"cpu": 2048, "cuda": 8192}
_GEMM_WORK = {"cpu": 7e10, "cuda": 2e14}
"""Operations per measurement of a rate: a quarter of a second or more."""
_STATE_COPIES = 5
"""Parameters, their gradients, two moments, and the teacher's parameters."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker does; ``gemm`` measures matrix products of the size's shapes."""

    kind: Kind
    size: Size
    precision: Precision
    device: str = "cpu"

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Job":
        """The job that ``to_json`` has written."""
        fields = json.loads(line)
        return cls(**{**fields, "size": Size(**fields["size"])})


@dataclass(frozen=True, slots=True)
class Started:
    """What a worker says once it is ready."""

    before_gib: float
    """Memory before anything was built."""
    state_gib: float
    """Of parameters, gradients, moments and teacher: no implementation of fp32 AdamW needs less."""
    threads: int


@dataclass(frozen=True, slots=True)
class Ran:
    """What a worker says after some steps."""

    seconds: float
    terms: Mapping[str, float] = field(default_factory=dict)
    """Loss terms of the last step."""
    norms: Mapping[str, float] = field(default_factory=dict)
    """Gradient norms of the last step."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """GFLOP/s of each product, of a ``gemm`` job."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a worker says at its end."""

    peak_gib: float


class Work(Protocol):
    """What is measured."""

    state_bytes: int

    def run(self, count: int) -> Ran:
        """Do it ``count`` times; the caller takes the time."""


class _Steps:
    """An implementation of the step, from step 0 on."""

    def __init__(
        self, student: nn.Module, advance: Callable[[int], tuple[Mapping[str, float], Mapping[str, float]]]
    ) -> None:
        self.state_bytes = _STATE_COPIES * sum(each.numel() * each.element_size() for each in student.parameters())
        self._advance = advance
        self._step = 0

    def run(self, count: int) -> Ran:
        """Some steps."""
        terms: Mapping[str, float] = {}
        norms: Mapping[str, float] = {}
        for _ in range(count):
            terms, norms = self._advance(self._step)
            self._step += 1
        return Ran(0.0, terms, norms)


def ours(job: Job) -> _Steps:
    """The product's step."""
    recipe = job.size.recipe(job.precision)
    training = single_process_step(recipe, device=job.device)
    slot = prepared_slot(recipe, job.device)

    def advance(step: int) -> tuple[Mapping[str, float], Mapping[str, float]]:
        result = training.run(step, [slot])
        if result.skipped is not None:
            raise ValueError(f"step {step} was left out: {result.skipped.reason}")
        return result.terms, result.gradient_norms

    return _Steps(training.student, advance)


def reference(job: Job) -> _Steps:
    """The plain step, from the same weights and on the same slot."""
    recipe = job.size.recipe(job.precision)
    plain = ReferenceStep(recipe, _first_weights(job), job.device)
    slot = prepared_slot(recipe, job.device)
    return _Steps(plain.student, lambda step: plain.run(step, slot))


def _first_weights(job: Job) -> dict[str, Tensor]:
    recipe = job.size.recipe(job.precision)
    start = Network(recipe)
    start.init_weights(recipe.seed)
    return start.state_dict()


class Products:
    """Matrix products: square ones and the step's own, by ``torch.matmul`` and, in fp32 on CPUs, as our layers do."""

    state_bytes = 0

    def __init__(self, job: Job) -> None:
        kind = torch.device(job.device).type
        side = _GEMM_SIDES[kind]
        self._device = job.device
        self._work = _GEMM_WORK[kind]
        self._products: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = {}
        for name, (rows, inputs, outputs) in {"square": (side, side, side), "step": step_product(job.size)}.items():
            x_XI = torch.randn(rows, inputs, device=job.device).to(DTYPES[job.precision])
            weight_OI = torch.randn(outputs, inputs, device=job.device).to(DTYPES[job.precision])
            self._products[f"matmul_{name}"] = (lambda x, weight: x @ weight.T, x_XI, weight_OI)
            if kind == "cpu" and job.precision == "fp32":
                self._products[f"onednn_{name}"] = (linear, x_XI, weight_OI)

    def run(self, count: int) -> Ran:
        """Measure every product; ``count`` times as long."""
        rates = {name: self._rate(*product, count) for name, product in self._products.items()}
        return Ran(0.0, rates=rates)

    def _rate(self, multiply: Callable[[Tensor, Tensor], Tensor], x_XI: Tensor, weight_OI: Tensor, count: int) -> float:
        flops = 2 * x_XI.numel() * len(weight_OI)
        # Caches, clocks and threads must be warm: a fifth of the work goes unmeasured.
        repeats = max(1, round(count * self._work / flops))
        for _ in range(max(1, repeats // 5)):
            multiply(x_XI, weight_OI)
        started = _now(self._device)
        for _ in range(repeats):
            multiply(x_XI, weight_OI)
        return flops * repeats / (_now(self._device) - started) / 1e9


_WORK: dict[Kind, Callable[[Job], Work]] = {"ours": ours, "reference": reference, "gemm": Products}


def _now(device: str) -> float:
    """The time once the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_gib(device: str) -> float:
    """The most memory that this process has held: resident, or of tensors on a GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return _resident_gib("VmHWM")


def _resident_gib(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024 / 2**30
    raise ValueError(f"/proc/self/status does not tell {key}")


def serve(job: Job, requests: Iterable[str], answer: Callable[[Any], None]) -> None:
    """Build what the job asks for, then do as requested until ``quit`` or the end.

    Raises:
        ValueError: a request is none of the protocol's.
    """
    on_gpu = torch.device(job.device).type == "cuda"
    before = torch.cuda.memory_allocated(job.device) / 2**30 if on_gpu else _resident_gib("VmRSS")
    work = _WORK[job.kind](job)
    answer(Started(before, work.state_bytes / 2**30, torch.get_num_threads()))
    for request in requests:
        match request.split():
            case ["run", count]:
                started = _now(job.device)
                ran = work.run(int(count))
                answer(Ran(_now(job.device) - started, ran.terms, ran.norms, ran.rates))
            case ["quit"]:
                answer(Ended(peak_gib(job.device)))
                return
            case _:
                raise ValueError(f"no such request: {request!r}")


def main() -> None:
    """The process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's group; who started us ends us
    answers: TextIO = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(what: Any) -> None:
        print(json.dumps(asdict(what)), file=answers, flush=True)

    serve(Job.from_json(sys.argv[1]), sys.stdin, answer)


if __name__ == "__main__":
    main()

"""Run every bench, each in a process of its own, and write this kind of machine's section of RESULTS.md.

Command: ``make bench``, or ``python tests/benchmarks/run_all.py --quick``. A bench that fails is named, the others
still run, and the exit status is 1.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from frame import BenchResult
from machine import machine_facts
from results_page import Failure, durations_of, machine_kind, results_of, results_page

FOLDER = Path(__file__).parent
_HEARTBEAT_S = 15.0
_LIMIT_S = 7200.0
"""A bench that runs longer hangs."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """How far all benches together are."""

    started_at: float
    total: int
    expected_s: Mapping[str, float]
    """By bench, from the page that is there."""

    def line(self, name: str, number: int, waiting: Sequence[str], running_s: float) -> str:
        """``[2/9] bench_step: 0:40; all: 1:10, ETA 3:05``."""
        left = [self.expected_s.get(each) for each in (name, *waiting)]
        known = [max(0.0, seconds - (running_s if index == 0 else 0)) for index, seconds in enumerate(left) if seconds]
        eta = f"ETA {_clock(sum(known))}" if len(known) == len(left) else "ETA unknown at the first run"
        elapsed = _clock(time.monotonic() - self.started_at)
        return f"[{number}/{self.total}] {name}: {_clock(running_s)}; all: {elapsed}, {eta}"


def run_benches(scripts: Sequence[Path], quick: bool, expected_s: Mapping[str, float]) -> list[BenchResult | Failure]:
    """Run the scripts one after the other; what each found, or how it failed."""
    outlook = Outlook(time.monotonic(), len(scripts), expected_s)
    found: list[BenchResult | Failure] = []
    for index, script in enumerate(scripts):
        waiting = [later.stem for later in scripts[index + 1 :]]
        found.append(_run(script, quick, index + 1, waiting, outlook))
    return found


def _run(script: Path, quick: bool, number: int, waiting: Sequence[str], outlook: Outlook) -> BenchResult | Failure:
    name = script.stem
    command = [sys.executable, str(script), "--json", *(["--quick"] if quick else [])]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        # A group of its own, so that nothing it started outlives it.
        process = subprocess.Popen(command, stdout=output, start_new_session=True)
        try:
            while process.poll() is None:
                running_s = time.monotonic() - started
                if running_s > _LIMIT_S:
                    return _fail(name, f"did not end within {_LIMIT_S:.0f} s")
                print(outlook.line(name, number, waiting, running_s), flush=True)
                _wait(process)
        finally:
            _end(process)
        output.seek(0)
        text = output.read()
    if process.returncode:
        return _fail(name, f"exit status {process.returncode}", text)
    try:
        return BenchResult.from_json(text.rstrip().rpartition("\n")[2])
    except ValueError as error:
        return _fail(name, f"its last line is no result: {error}", text)


def _wait(process: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_HEARTBEAT_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _fail(name: str, reason: str, output: str = "") -> Failure:
    print(f"{name} FAILED: {reason}\n{output[-2000:]}", file=sys.stderr, flush=True)
    return Failure(name, reason)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all and write the page; 1 if a bench failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="pass --quick on to every bench")
    parser.add_argument("--output", type=Path, default=FOLDER / "RESULTS.md", help="the page to write")
    parser.add_argument("--only", metavar="AREA", help="run bench_AREA.py alone; of the others the last results stay")
    flags = parser.parse_args(arguments)
    facts = machine_facts()
    kind = machine_kind(facts)
    before = flags.output.read_text(encoding="utf-8") if flags.output.exists() else ""
    scripts = sorted(FOLDER.glob(f"bench_{flags.only or '*'}.py"))
    if not scripts:
        parser.error(f"there is no bench_{flags.only}.py")
    kept = [each for each in results_of(before, kind) if flags.only and each.bench != flags.only]
    measured = run_benches(scripts, flags.quick, durations_of(before, flags.quick, kind))
    found = sorted([*measured, *kept], key=lambda each: each.bench.removeprefix("bench_"))
    flags.output.write_text(results_page(facts, found, flags.quick, before), encoding="utf-8")
    failures = [each.bench for each in found if isinstance(each, Failure)]
    print(f"wrote {flags.output}" + (f"; FAILED: {', '.join(failures)}" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

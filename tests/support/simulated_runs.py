"""A made-up elastic run, second by second: what every second was spent on is known, because it is said as it passes."""

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

from heliostat.observe.events import Event, EventType
from heliostat.observe.metrics import StepMetrics
from heliostat.observe.spans import Category

BEGIN_S = 1_800_000_000


def at(seconds: float) -> str:
    return datetime.fromtimestamp(BEGIN_S + seconds, UTC).isoformat()


def event(kind: str, seconds: float, attempt: int = 1, **fields: object) -> Event:
    return Event(at(seconds), kind, attempt, None, fields)


def step(number: int, ends_s: float, attempt: int = 1, **seconds: float) -> StepMetrics:
    return StepMetrics(number, attempt, at(ends_s), {}, seconds)


@dataclass
class SimulatedRun:
    """Time passes through `pass_`; everything else writes what a run would write at that second."""

    draw: random.Random
    log_every: int = 1
    events: list[Event] = field(default_factory=list)
    lines: list[StepMetrics] = field(default_factory=list)
    spent: list[Category] = field(default_factory=list)
    """Of every second."""
    step_of: dict[int, int] = field(default_factory=dict)
    """Step that a second was part of, for the seconds of ended steps."""
    attempt: int = 0
    step: int = 0

    @property
    def now_s(self) -> int:
        return len(self.spent)

    def pass_(self, category: Category, seconds: int) -> None:
        self.spent += [category] * seconds

    def say(self, kind: EventType, **fields: object) -> None:
        self.events.append(Event(at(self.now_s), kind, self.attempt, None, fields))

    def work(self, steps: int) -> None:
        """Make steps; those that take alike long when a line stands for several."""
        seconds: Counter[str] = Counter()
        for _ in range(steps):
            begun_s, alike = self.now_s, self.log_every > 1
            parts = {
                Category.DATA_WAIT: 0 if alike else self.draw.randint(0, 2),
                Category.PRODUCTIVE: 3 if alike else self.draw.randint(1, 5),
                Category.EVALUATION: 0 if alike else self.draw.choice([0, 0, 2]),
                Category.CHECKPOINT: 0 if alike else self.draw.choice([0, 0, 1]),
            }
            for category, length in parts.items():
                self.pass_(category, length)
                name = "student_s" if category == Category.PRODUCTIVE else f"{category}_s"
                seconds[name] += length
            self.step_of.update(dict.fromkeys(range(begun_s, self.now_s), self.step))
            self.step += 1
            if self.step % self.log_every == 0:
                self.lines.append(StepMetrics(self.step - 1, self.attempt, at(self.now_s), {}, dict(seconds)))
                seconds.clear()

    def begin(self, idle: Category, resume_at: int | None, fails: bool = False) -> None:
        """Start workers and come to the first step."""
        self.pass_(idle, self.draw.randint(0, 2))
        if self.draw.random() < 0.5:
            self.say(EventType.CAPACITY_AWAITED, usable=0, needed=1)
            self.pass_(Category.CAPACITY, self.draw.randint(1, 9))
        self.say(EventType.WORKERS_STARTING, workers=2)
        self.pass_(idle, self.draw.randint(1, 4))
        self.attempt += 1
        self.say(EventType.ATTEMPT_STARTED, workers=2)
        self.pass_(idle, self.draw.randint(0, 3))
        if resume_at is not None:
            self.say(EventType.RESUMED, step=resume_at, source="memory")
        if fails:
            self.say(EventType.INTERRUPTED, step=resume_at, cause="node_lost")
            return
        self.pass_(idle, self.draw.randint(1, 3))
        self.step = resume_at or 0
        self.say(EventType.DATA_READY, step=self.step)
        # What was done from this step on is done again.
        for second, step in self.step_of.items():
            if step >= self.step:
                self.spent[second] = Category.LOST
        self.step_of = {second: step for second, step in self.step_of.items() if step < self.step}

    def crash(self) -> None:
        self.pass_(Category.LOST, self.draw.randint(0, 3))
        self.say(EventType.INTERRUPTED, step=self.step, cause="node_lost", ranks=[1])

    def resize(self) -> None:
        self.say(EventType.RESIZE_PLANNED, workers=3, reason="grow")
        self.work(self.log_every)
        self.pass_(Category.CHECKPOINT, self.draw.randint(0, 3))
        self.say(EventType.INTERRUPTED, step=self.step, cause="resize")

    def driver_dies(self) -> None:
        self.pass_(Category.DOWN, self.draw.randint(1, 20))
        self.say(EventType.SUPERVISION_STARTED, min_workers=1, max_workers=4)

    def finish(self) -> None:
        self.pass_(Category.CHECKPOINT, self.draw.randint(0, 2))
        self.say(EventType.RUN_FINISHED, step=self.step)
        self.pass_(Category.OTHER, self.draw.randint(0, 2))
        self.say(EventType.ATTEMPT_ENDED, cause="completed")
        self.say(EventType.SUPERVISION_ENDED, outcome="finished")


def simulated_run(seed: int) -> SimulatedRun:
    """A run with up to eight interruptions of every kind."""
    draw = random.Random(seed)
    run = SimulatedRun(draw, log_every=draw.choice([1, 1, 3]))
    run.say(EventType.SUPERVISION_STARTED, min_workers=1, max_workers=4)
    run.begin(Category.START, None)
    for _ in range(draw.randint(0, 8)):
        run.work(draw.randint(1, 4) * run.log_every + (0 if run.log_every == 1 else draw.randint(0, 2)))
        fate = draw.choice(["crash", "resize", "driver"])
        if fate == "driver" and run.step % run.log_every:
            fate = "crash"  # of a driver that died only the last line is known
        {"crash": run.crash, "resize": run.resize, "driver": run.driver_dies}[fate]()
        resume_at = run.step if fate == "resize" else draw.randint(0, run.step // run.log_every) * run.log_every
        while draw.random() < 0.3:
            run.begin(Category.RECOVERY, resume_at, fails=True)
        run.begin(Category.RECOVERY, resume_at)
    run.work(2 * run.log_every)
    run.finish()
    return run

"""What Prometheus sees of a run, through Ray's metrics: one table, from which dashboards can be generated.

All have the tag ``run``. Ray exports them where its agents run, that is where ``ray[default]`` is installed, as Ray's
images for clusters have it. Where Ray is not there (one process, a notebook) nothing happens.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from heliostat.observe.goodput import Ledger
from heliostat.observe.metrics import PHASES
from heliostat.observe.status import RunStatus

_SECONDS, _INTERRUPTIONS = "run_s_", "interruptions_by_"
"""Prefixes of the fields of `run_values` that have a tag."""


@dataclass(frozen=True, slots=True)
class Published:
    """One metric."""

    name: str
    kind: Literal["gauge", "counter"]
    description: str
    fields: tuple[str, ...]
    """Of a line of metrics or of `run_values`, where its values come from."""
    tag: str | None = None
    """Besides ``run``: tells the fields apart."""
    prefix: str | None = None
    """Instead of fields: all whose names begin with it, and the rest of the name is the tag's value."""

    @property
    def exported_name(self) -> str:
        """As Prometheus sees it."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


PUBLISHED: tuple[Published, ...] = (
    Published("heliostat_step", "gauge", "Steps of the run that are done.", ("steps_done",)),
    Published("heliostat_steps", "counter", "Steps that this attempt has made.", ("steps_made",)),
    Published("heliostat_steps_skipped", "counter", "Steps whose update was left out.", ("steps_skipped",)),
    Published("heliostat_images_per_second", "gauge", "Images per second, over all workers.", ("images_per_s",)),
    Published("heliostat_loss", "gauge", "Loss of the newest step.", ("loss",)),
    Published("heliostat_mfu", "gauge", "Model FLOPs utilisation, a share of the peak.", ("mfu",)),
    Published("heliostat_memory_peak_mib", "gauge", "Most memory in use on the first worker.", ("memory_peak_mib",)),
    Published("heliostat_workers", "gauge", "Workers that there are now; 0 between attempts.", ("workers",)),
    Published("heliostat_workers_wanted", "gauge", "Workers that the run has room for.", ("workers_wanted",)),
    Published("heliostat_goodput", "gauge", "Productive share of the time that the run was up.", ("goodput",)),
    Published(
        "heliostat_run_seconds",
        "gauge",  # what a step was worth may turn out later, when it has to be computed again
        "Seconds of the run's wall clock by what they were spent on, over all attempts and drivers.",
        (),
        tag="category",
        prefix=_SECONDS,
    ),
    Published(
        "heliostat_interruptions",
        "gauge",  # counted over the whole run, which a restarted driver goes on with
        "Interruptions of the run by cause.",
        (),
        tag="cause",
        prefix=_INTERRUPTIONS,
    ),
    Published(
        "heliostat_preemption_notices", "gauge", "Notices that nodes will be taken away.", ("preemption_notices",)
    ),
    Published(
        "heliostat_phase_seconds",
        "counter",
        "Seconds spent in each phase: waiting for images, teacher, student, optimizer, EMA, checkpoints, evaluation.",
        tuple(PHASES),
        tag="phase",
    ),
)
"""Everything that a run publishes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of a metric."""

    metric: Published
    tags: dict[str, str]
    value: float


def run_values(ledger: Ledger, status: RunStatus) -> dict[str, float]:
    """What is to be published of a run as a whole, by its driver; see `RayMetrics.publish`."""
    known = {"workers": status.workers, "workers_wanted": status.wanted_workers, "goodput": ledger.goodput}
    return {
        **{name: value for name, value in known.items() if value is not None},
        **{_SECONDS + category: seconds for category, seconds in ledger.seconds.items()},
        **{_INTERRUPTIONS + cause: count for cause, count in status.interruptions.items()},
        "preemption_notices": status.preemption_notices,
    }


def samples(run: str, values: Mapping[str, float]) -> Iterator[Sample]:
    """What a line of metrics gives of the table; fields that it does not have give nothing."""
    for metric in PUBLISHED:
        for field, tag in _tags(metric, values):
            yield Sample(metric, {"run": run} if metric.tag is None else {"run": run, metric.tag: tag}, values[field])


def _tags(metric: Published, values: Mapping[str, float]) -> list[tuple[str, str]]:
    """Fields of a metric that have values, each with the value of its tag."""
    if metric.prefix is None:
        return [(field, field.removesuffix("_s")) for field in metric.fields if field in values]
    return [(field, field.removeprefix(metric.prefix)) for field in values if field.startswith(metric.prefix)]


class RayMetrics:
    """Publishes a run's metrics where Ray is initialised.

    Args:
        run: Its name.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        ray = sys.modules.get("ray")
        self._metrics: dict[str, Any] = {}
        if ray is not None and ray.is_initialized():
            self._metrics = {metric.name: _new_metric(metric) for metric in PUBLISHED}

    def publish(self, values: Mapping[str, float]) -> None:
        """Set gauges and advance counters; a few microseconds, nothing is sent here."""
        if not self._metrics:
            return
        for sample in samples(self._run, values):
            metric = self._metrics[sample.metric.name]
            if sample.metric.kind == "gauge":
                metric.set(sample.value, sample.tags)
            elif sample.value > 0:
                metric.inc(sample.value, sample.tags)


def _new_metric(metric: Published) -> Any:
    from ray.util.metrics import Counter, Gauge

    tags = ("run",) if metric.tag is None else ("run", metric.tag)
    return (Gauge if metric.kind == "gauge" else Counter)(metric.name, metric.description, tags)

import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest

from heliostat.observe.goodput import Ledger
from heliostat.observe.metrics import PHASES
from heliostat.observe.prometheus import PUBLISHED, RayMetrics, run_values, samples
from heliostat.observe.spans import Category
from heliostat.observe.status import RunStatus
from heliostat_cluster.local import LOCAL_ENV

LEDGER = Ledger({**dict.fromkeys(Category, 0.0), Category.PRODUCTIVE: 60.0, Category.LOST: 20.0, Category.DOWN: 9.0})
STATUS = RunStatus(
    10, workers=8, wanted_workers=16, interruptions={"preempted": 2, "node_lost": 1}, preemption_notices=3
)
LINE = {
    **run_values(LEDGER, STATUS),
    "steps_done": 12,
    "steps_made": 2,
    "steps_skipped": 0,
    "images_per_s": 250.0,
    "loss": 9.5,
    "lr": 0.1,
    "mfu": 0.4,
    "memory_peak_mib": 1000.0,
    **dict.fromkeys(PHASES, 0.5),
}


def test_samples__are_the_tables_fields_with_the_runs_tag() -> None:
    found = {(each.metric.name, each.tags.get("phase")): each.value for each in samples("my-run", LINE)}
    assert found[("heliostat_step", None)] == 12
    assert found[("heliostat_steps", None)] == 2
    assert found[("heliostat_workers", None)] == 8
    phases = {"data_wait", "teacher", "student", "optimizer", "ema", "checkpoint", "evaluation"}
    assert {phase for name, phase in found if name == "heliostat_phase_seconds"} == phases
    assert found.keys() >= {(metric.name, None) for metric in PUBLISHED if metric.tag is None}
    assert all(each.tags["run"] == "my-run" for each in samples("my-run", LINE))


def test_run_values__are_published_with_their_tags() -> None:
    found = {(each.metric.name, *sorted(each.tags.values())): each.value for each in samples("a", LINE)}
    assert found[("heliostat_goodput", "a")] == 0.75
    assert found[("heliostat_workers_wanted", "a")] == 16
    assert found[("heliostat_preemption_notices", "a")] == 3
    by_cause = {key[-1]: value for key, value in found.items() if key[0] == "heliostat_interruptions"}
    assert by_cause == {"preempted": 2, "node_lost": 1}
    seconds = {key[1:]: value for key, value in found.items() if key[0] == "heliostat_run_seconds"}
    assert len(seconds) == len(Category)
    assert seconds[("a", "lost_work")] == 20


def test_run_values__what_is_not_known_yet_is_left_out() -> None:
    values = run_values(Ledger(dict.fromkeys(Category, 0.0)), RunStatus(10))
    assert {"goodput", "workers", "workers_wanted"}.isdisjoint(values)
    assert values["preemption_notices"] == 0


def test_samples__fields_that_a_line_does_not_have_give_nothing() -> None:
    assert [each.metric.name for each in samples("my-run", {"loss": 1.0, "unknown": 2.0})] == ["heliostat_loss"]


def test_published__names_are_prometheus_names_and_used_once() -> None:
    names = [metric.name for metric in PUBLISHED]
    assert len(set(names)) == len(names)
    assert all(name.startswith("heliostat_") and name.replace("_", "").isalnum() for name in names)


def test_ray_metrics__without_ray_nothing_happens() -> None:
    code = (
        "import sys; from heliostat.observe.prometheus import RayMetrics; RayMetrics('r').publish({'loss': 1.0}); "
        "print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert done.stderr == ""


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_ray_metrics__ray_takes_every_metric_and_exports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    for name, value in LOCAL_ENV.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    soon = {"metrics_report_interval_ms": 500}
    ray.init("local", num_cpus=1, include_dashboard=False, _metrics_export_port=port, _system_config=soon)
    try:
        metrics = RayMetrics("my-run")
        metrics.publish(LINE)  # Ray refuses tags and values that do not fit a metric
        metrics.publish(LINE)
        found = scraped(f"http://127.0.0.1:{port}/metrics")
    finally:
        ray.shutdown()
    # Ray never sees a counter that was not advanced.
    assert found.keys() == {metric.exported_name for metric in PUBLISHED} - {"ray_heliostat_steps_skipped_total"}
    assert found["ray_heliostat_images_per_second"] == 250
    assert found["ray_heliostat_steps_total"] == 4
    assert found["ray_heliostat_phase_seconds_total"] == 1


def scraped(url: str) -> dict[str, float]:
    """A value of each of our metrics; waits until Ray exports them."""
    deadline_s = time.monotonic() + 60
    found: dict[str, float] = {}
    while len(found) < len(PUBLISHED) - 1 and time.monotonic() < deadline_s:
        time.sleep(0.5)
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_heliostat")]
            found = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
    return found

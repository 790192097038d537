import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from heliostat.observe.events import EventType, EventWriter
from heliostat.observe.metrics import MetricsWriter
from heliostat.observe.progress import RunWatch, watch_items, watch_run
from heliostat.observe.spans import Category
from heliostat.storage import open_store
from heliostat.storage.local import LocalStore


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"})


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_watch_run__plain_lines_end_with_the_last_state(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    console = plain()
    with watch_run(store, 2, console), EventWriter(store, 1) as events, MetricsWriter(store, 1) as metrics:
        events.emit(EventType.ATTEMPT_STARTED, workers=2)
        metrics.write(0, loss=9.5, images_per_s=100.0)
        metrics.write(1, loss=9.25, images_per_s=100.0)
        metrics.flush()
        events.emit(EventType.RUN_FINISHED)
    lines = text(console).splitlines()
    assert re.sub(r" · goodput \d+%", "", lines[-1]) == "finished: step 2/2 · loss 9.250 · 100 images/s · 2 workers"
    assert len(lines) <= 2, "a line at most every few seconds"
    assert "\r" not in text(console) and "\x1b" not in text(console)


def test_run_watch__goodput_counts_up_to_now_only_while_the_run_lives(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with EventWriter(store, 1) as events, MetricsWriter(store, 1) as metrics:
        events.emit(EventType.ATTEMPT_STARTED, workers=2)
        events.emit(EventType.DATA_READY, step=0)
        time.sleep(0.02)
        metrics.write(0, loss=9.5, student_s=0.02)
    watch = RunWatch(store, 4, plain(), poll_interval_s=0.01)
    watch.start()
    time.sleep(0.1)
    history_s = watch.ledger.wall_s
    time.sleep(0.2)
    assert watch.ledger.wall_s == history_s >= 0.02, "nobody has looked after the run since"
    assert watch.status.goodput is not None and watch.status.goodput > 0.5
    with EventWriter(store, 2) as events:
        events.emit(EventType.SUPERVISION_STARTED, max_workers=3)
        events.flush()
        time.sleep(0.3)
        watch.stop()
    seconds = watch.ledger.seconds
    assert seconds[Category.DOWN] > 0.2
    assert seconds[Category.RECOVERY] > 0.2
    assert watch.status.wanted_workers == 3


def test_watch_run__a_terminal_shows_a_bar_and_is_left_clean(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    console = terminal()
    with watch_run(store, 4, console), MetricsWriter(store, 1) as metrics:
        for step in range(4):
            metrics.write(step, loss=9.5 - step)
    shown = text(console)
    assert "finishing 4/4" in shown and "loss 6.500" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor must come back"


def test_watch_run__stops_when_the_block_fails(tmp_path: Path) -> None:
    console = terminal()
    with pytest.raises(RuntimeError, match="boom"), watch_run(open_store(str(tmp_path)), 4, console):
        raise RuntimeError("boom")
    assert text(console).count("\x1b[?25h") == 1


class SilentStore(LocalStore):
    """A store that stopped answering."""

    def list(self, prefix: str = "") -> None:  # type: ignore[override]
        raise ConnectionError(prefix)


def test_run_watch__a_store_that_fails_is_asked_again(tmp_path: Path) -> None:
    console = plain()
    watch = RunWatch(SilentStore(tmp_path), 4, console, poll_interval_s=0.01)
    watch.start()
    time.sleep(0.05)
    watch.stop()
    assert text(console) == "waiting for workers: step 0/4\n"


def test_watch_items__plain_lines_are_few_and_the_last_is_complete() -> None:
    console = plain()
    with watch_items("ingest", console=console) as progress:
        for done in range(0, 5001, 50):
            progress.update(done, quarantined=3, total=5000)
    first, last = text(console).splitlines()
    assert first.startswith("ingest: 0/5,000 images")
    assert last.startswith("ingest: 5,000/5,000 images · ") and last.endswith(" · 3 quarantined")


def test_watch_items__a_terminal_shows_a_bar() -> None:
    console = terminal()
    with watch_items("ingest", 10, console) as progress:
        progress.update(4, quarantined=1)
    assert "ingest 4/10" in text(console) and "1 quarantined" in text(console)

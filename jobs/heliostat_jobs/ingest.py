"""What a person sees of an ingest while it runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from heliostat.observe.progress import ItemProgress, watch_items

if TYPE_CHECKING:
    from heliostat.data.ingest import IngestProgress, Report

_STAGES = {"check": "checking", "store": "storing"}


@contextmanager
def show_ingest() -> Iterator["Report"]:
    """A view of each stage of each round of an ingest, one after the other; what it gives is told how far that is."""
    views: dict[tuple[int, str], ItemProgress] = {}
    with ExitStack() as open_view:

        def report(progress: "IngestProgress") -> None:
            key = (progress.round, progress.stage)
            if key not in views:
                open_view.close()
                views.clear()
                views[key] = open_view.enter_context(watch_items(_phase(progress), progress.total))
            views[key].update(progress.done, progress.quarantined, progress.total)

        yield report


def _phase(progress: "IngestProgress") -> str:
    stage = _STAGES[progress.stage]
    return stage if progress.round == 0 else f"round {progress.round + 1}: {stage}"

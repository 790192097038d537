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
    """A view of each stage of an ingest, one after the other; what it gives is told how far the ingest is."""
    views: dict[str, ItemProgress] = {}
    with ExitStack() as open_view:

        def report(progress: "IngestProgress") -> None:
            if progress.stage not in views:
                open_view.close()
                views[progress.stage] = open_view.enter_context(watch_items(_STAGES[progress.stage], progress.total))
            views[progress.stage].update(progress.done, progress.quarantined)

        yield report

"""What an ingest is asked to do, and how it says how far it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from heliostat.data.images import DEFAULT_LIMITS, ImageLimits
from heliostat.data.ingest.first_pass import DECODER_MODULE
from heliostat.data.ingest.workspace import Workspace
from heliostat.data.shards import DEFAULT_LAYOUT, ShardLayout
from heliostat.data.sources import Source
from heliostat.storage import Store
from heliostat.storage.layout import dataset_store


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """How images are taken in.

    Args:
        limits: What is accepted.
        layout: How images are cut into shards.
        resize_px: Images whose shorter side is longer are shrunk to it and coded anew; None keeps all as they are.
        edit: Plug-in that changes images, before they are shrunk; see ``heliostat.data.edits``.
        max_quarantined_share: The ingest stops when more of the items checked so far than this are refused, from the
            thousandth item on; 1 never stops.
        round_items: Items that are checked before they are packed and published. Memory on the driver grows with it,
            by about a kilobyte for each.
        decoder_module: What runs in the process that decodes; another one in tests.
    """

    limits: ImageLimits = DEFAULT_LIMITS
    layout: ShardLayout = DEFAULT_LAYOUT
    resize_px: int | None = None
    edit: str | None = None
    max_quarantined_share: float = 0.5
    round_items: int = 250_000
    decoder_module: str = DECODER_MODULE


DEFAULT_OPTIONS = IngestOptions()


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far a round of an ingest is, from the start of each stage.

    ``total`` counts items to check (``None`` if the source cannot say), then new images to store, both without those
    that an earlier start of the same ingest has done; ``quarantined`` counts over all rounds.
    """

    stage: Literal["check", "store"]
    done: int
    total: int | None
    quarantined: int
    round: int = 0


Report = Callable[[IngestProgress], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What stays the same over all rounds of an ingest."""

    source: Source
    root: Store
    name: str
    workspace: Workspace
    options: IngestOptions
    report: Report

    @property
    def store(self) -> Store:
        """The dataset's part of the root."""
        return dataset_store(self.root, self.name)

"""Rounds: a source is taken in pieces of bounded size, each checked, packed and published before the next one begins.

So what an ingest holds in memory, and keeps in working objects, depends on the size of a round and not on that of the
source. Where rounds are cut depends on the source alone.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from heliostat.config.base import Section
from heliostat.data.ingest.checked import refusals_of
from heliostat.data.manifest import QuarantinePart
from heliostat.data.sources import Unit

_ITEMS_OF_UNKNOWN = 10_000
"""What a unit that cannot say how many items it has is taken for: an archive, usually."""


def cut_rounds(units: Iterable[Unit], items: int) -> Iterator[list[Unit]]:
    """Consecutive units with about ``items`` items in each list, no list empty, consumed as the lists are."""
    taken: list[Unit] = []
    count = 0
    for unit in units:
        size = _ITEMS_OF_UNKNOWN if unit.items is None else unit.items
        if taken and count + size > items:
            yield taken
            taken, count = [], 0
        taken.append(unit)
        count += size
    if taken:
        yield taken


def round_fingerprint(units: Sequence[Unit]) -> str:
    """What the note of a round is compared by: the fingerprints of all its units."""
    return hashlib.sha256("".join(unit.fingerprint for unit in units).encode()).hexdigest()


class Refusal(Section):
    """One refused item, to show in an error."""

    source: str
    detail: str


class Tally(Section):
    """What an ingest has done so far. ``usable`` counts images before duplicates are dropped."""

    usable: int = 0
    images: int = 0
    duplicates: int = 0
    skipped: int = 0
    resumed: int = 0
    size_bytes: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)
    first: Refusal | None = Field(None, description="the refused item with the first name")

    @property
    def checked(self) -> int:
        """All items."""
        return self.usable + self.quarantined

    @property
    def quarantined(self) -> int:
        """Items that were refused."""
        return sum(self.reasons.values())

    def in_words(self) -> str:
        """What was refused, for an error."""
        counts = ", ".join(f"{count} {reason}" for reason, count in Counter(self.reasons).most_common())
        return f"({counts}); the first is {self.first.source!r}: {self.first.detail}" if self.first else f"({counts})"

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            usable=self.usable + other.usable,
            images=self.images + other.images,
            duplicates=self.duplicates + other.duplicates,
            skipped=self.skipped + other.skipped,
            resumed=self.resumed + other.resumed,
            size_bytes=self.size_bytes + other.size_bytes,
            reasons=dict(sorted((Counter(self.reasons) + Counter(other.reasons)).items())),
            first=min(filter(None, (self.first, other.first)), key=lambda refusal: refusal.source, default=None),
        )


def tally_of(checked: pa.Table) -> Tally:
    """What the rows of a record of the first pass come to."""
    refused = refusals_of(checked)
    reasons = Counter(refused["reason"].to_pylist())
    first = None
    if refused.num_rows:
        row = refused.take(pc.sort_indices(refused, [("source", "ascending")])[:1]).to_pylist()[0]
        first = Refusal(source=row["source"], detail=row["detail"])
    return Tally(usable=checked.num_rows - refused.num_rows, reasons=dict(reasons), first=first)


class RoundNote(Section):
    """What is kept of a finished round until the whole ingest is finished. ``tally`` is that of the round alone.

    ``unpublished`` are lists of refused files that no manifest names yet: the first one that is published has an image.
    """

    fingerprint: str
    tally: Tally
    manifest_sha256: str | None = Field(None, description="the round is finished only if the dataset has this manifest")
    unpublished: tuple[QuarantinePart, ...]

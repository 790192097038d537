"""What to request of a row group: all of it, or ranges around the images that are wanted. Decisions only.

Requests wait for the store, bytes take up the line. With several requests in flight their waiting overlaps, so a gap
between two wanted images is cheaper to read than to skip up to ``gap_bytes`` = waiting x line / requests in flight:
250 kB for the defaults, which are those of S3 in the same region and one reader's share of a node's line.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from heliostat.data.manifest import ByteRange

ADVISE_ABOVE = 2.0
"""Bytes read over bytes used from which a selection had better be materialised."""
_KEPT_FACTOR = 1.5
"""A whole row group stays in memory and serves later reads, if rows of it are left that will be wanted: it may cost
this much more than ranges, which serve no other read."""


@dataclass(frozen=True, slots=True)
class ReadCosts:
    """What a store costs in time."""

    wait_s: float = 0.02
    """From a request to the first byte."""
    bytes_per_s: float = 100e6
    """Of all requests of a reader together."""
    in_flight: int = 8
    """Requests at once."""

    @property
    def gap_bytes(self) -> int:
        """The largest gap that is cheaper to read than to skip."""
        return int(self.wait_s / self.in_flight * self.bytes_per_s)

    def seconds(self, requests: float, size_bytes: float) -> float:
        """Time that requests for so many bytes take, all of them together."""
        return requests * self.wait_s / self.in_flight + size_bytes / self.bytes_per_s


S3_COSTS = ReadCosts()


@dataclass(frozen=True, slots=True)
class Span:
    """One request: bytes [start, end) of an object, and which of the wanted images lie in it, as positions."""

    start: int
    end: int
    images: tuple[int, ...]


def merge_ranges(ranges: Sequence[tuple[int, int]], gap_bytes: int) -> list[Span]:
    """Requests for byte ranges [start, end), which must not overlap: neighbours with a small gap share one."""
    spans: list[Span] = []
    for image in sorted(range(len(ranges)), key=lambda image: ranges[image]):
        start, end = ranges[image]
        if spans and start - spans[-1].end <= gap_bytes:
            spans[-1] = Span(spans[-1].start, end, (*spans[-1].images, image))
        else:
            spans.append(Span(start, end, (image,)))
    return spans


def plan_group(
    ranges: Sequence[tuple[int, int]], group: ByteRange, *, more_wanted: bool, costs: ReadCosts = S3_COSTS
) -> list[Span] | None:
    """Requests for the images at these byte ranges of a row group; ``None`` to read all of it.

    Args:
        ranges: Of the images that are wanted now, [start, end) within the object.
        group: The row group.
        more_wanted: Whether other rows of the group belong to the same dataset.
        costs: Of the store.
    """
    spans = merge_ranges(ranges, costs.gap_bytes)
    by_ranges_s = costs.seconds(len(spans), sum(span.end - span.start for span in spans))
    whole_s = costs.seconds(1, group.size_bytes)
    return None if whole_s <= by_ranges_s * (_KEPT_FACTOR if more_wanted else 1.0) else spans


@dataclass(frozen=True, slots=True)
class GroupShare:
    """How much of a row group is wanted, wherever in it."""

    size_bytes: int
    rows: int
    wanted: int


def predict_amplification(shares: Iterable[GroupShare], costs: ReadCosts = S3_COSTS) -> float:
    """Bytes read over bytes used, if the wanted rows are anywhere in their row groups, and all images of a group alike.

    Raises:
        ZeroDivisionError: no row is wanted.
    """
    read = used = 0.0
    for share in shares:
        used += share.size_bytes * share.wanted / share.rows
        read += _expected_bytes(share, costs)
    return read / used


def _expected_bytes(share: GroupShare, costs: ReadCosts) -> float:
    row_bytes = share.size_bytes / share.rows
    density = share.wanted / share.rows
    gap_rows = int(costs.gap_bytes / row_bytes)
    # The gap before the next wanted row has j rows with probability d (1-d)^j; those of up to gap_rows are read too.
    skipped = (1 - density) ** (gap_rows + 1)
    read_gap_rows = sum(j * density * (1 - density) ** j for j in range(1, min(gap_rows, share.rows) + 1))
    requests = 1 + (share.wanted - 1) * skipped
    by_ranges = (share.wanted + (share.wanted - 1) * read_gap_rows) * row_bytes
    whole = costs.seconds(1, share.size_bytes) <= costs.seconds(requests, by_ranges)
    return share.size_bytes if whole else min(by_ranges, share.size_bytes)


def read_advice(name: str, amplification: float) -> str | None:
    """One line for the user if reading a selection where it lies wastes much; ``None`` if not."""
    if amplification <= ADVISE_ABOVE:
        return None
    return (
        f"reading {name!r} fetches about {amplification:.1f} bytes for every byte that is used, because its rows are "
        f"scattered over other datasets; `heliostat dataset materialize ROOT/{name} {name}-images` writes them out as "
        "shards of their own"
    )

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.data.manifest import ByteRange
from heliostat.data.read_plan import (
    S3_COSTS,
    GroupShare,
    ReadCosts,
    merge_ranges,
    plan_group,
    predict_amplification,
    read_advice,
)

COSTS = ReadCosts(wait_s=1.0, bytes_per_s=100.0, in_flight=10)  # a request costs as much as 10 bytes
GROUP = ByteRange(offset=1000, size_bytes=200, sha256="ab" * 32)


def images(*numbers: int, size: int = 10) -> list[tuple[int, int]]:
    return [(1000 + size * number, 1000 + size * (number + 1)) for number in numbers]


def test_gap_bytes__on_s3_is_a_quarter_of_a_megabyte() -> None:
    assert S3_COSTS.gap_bytes == 250_000
    assert COSTS.gap_bytes == 10


@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12),
    gap_bytes=st.integers(0, 30),
    draws=st.randoms(use_true_random=False),
)
def test_merge_ranges__reads_every_image_once_and_exactly_the_small_gaps(
    sizes: list[tuple[int, int]], gap_bytes: int, draws: Random
) -> None:
    ranges = []
    at = 0
    for gap, size in sizes:
        ranges.append((at + gap, at + gap + size))
        at += gap + size
    draws.shuffle(ranges)
    spans = merge_ranges(ranges, gap_bytes)
    assert sorted(image for span in spans for image in span.images) == list(range(len(ranges)))
    assert all(
        span.start <= ranges[image][0] and ranges[image][1] <= span.end for span in spans for image in span.images
    )
    assert all(after.start - before.end > gap_bytes for before, after in pairwise(spans))
    for span in spans:
        inside = sorted(ranges[image] for image in span.images)
        assert (span.start, span.end) == (inside[0][0], inside[-1][1])
        assert all(after[0] - before[1] <= gap_bytes for before, after in pairwise(inside))


@pytest.mark.parametrize(
    ("wanted", "more_wanted", "spans"),
    [
        (range(20), False, None),  # everything: one request
        ([3], True, [(1030, 1040)]),
        ([3, 4], True, [(1030, 1050)]),
        ([3, 5], True, [(1030, 1060)]),  # a gap of 10 bytes costs as much as a request
        ([3, 6], True, [(1030, 1040), (1060, 1070)]),
        ([0, 5, 10, 15], False, [(1000, 1010), (1050, 1060), (1100, 1110), (1150, 1160)]),  # 80 against 210
        ([0, 3, 6, 9, 12, 15], True, [(1000 + n, 1010 + n) for n in range(0, 180, 30)]),  # 120 against 210: too few
        ([0, 3, 6, 9, 12, 15, 18], False, [(1000 + n, 1010 + n) for n in range(0, 210, 30)]),  # 140 against 210
        ([0, 3, 6, 9, 12, 15, 18, 19], True, None),  # 150 against 210: worth it, as the rest is wanted later
        (range(0, 20, 2), False, [(1000, 1190)]),  # 200 against 210
        (range(0, 20, 2), True, None),
    ],
)
def test_plan_group__chooses_what_takes_less_time(
    wanted: list[int], more_wanted: bool, spans: list[tuple[int, int]] | None
) -> None:
    plan = plan_group(images(*wanted), GROUP, more_wanted=more_wanted, costs=COSTS)
    assert (None if plan is None else [(span.start, span.end) for span in plan]) == spans


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (GroupShare(200, 20, 20), 1.0),
        (GroupShare(200, 20, 1), 1.0),
        (GroupShare(20_000, 20, 5), 1.0),  # images much larger than a gap
        (GroupShare(20, 2000, 200), 10.0),  # images so small that the whole group is one gap
    ],
)
def test_predict_amplification__is_exact_where_there_is_no_chance(share: GroupShare, expected: float) -> None:
    assert predict_amplification([share], COSTS) == pytest.approx(expected, rel=0.01)


@given(
    shares=st.lists(
        st.integers(1, 200).flatmap(
            lambda rows: st.builds(GroupShare, st.integers(rows, 10**8), st.just(rows), st.integers(1, rows))
        ),
        min_size=1,
        max_size=5,
    )
)
def test_predict_amplification__is_between_nothing_extra_and_whole_groups(shares: list[GroupShare]) -> None:
    whole = sum(share.size_bytes for share in shares)
    used = sum(share.size_bytes * share.wanted / share.rows for share in shares)
    assert 1.0 - 1e-9 <= predict_amplification(shares) <= whole / used + 1e-9


def test_read_advice__names_the_factor_and_the_command() -> None:
    assert read_advice("best", 2.0) is None
    advice = read_advice("best", 3.337)
    assert advice is not None
    assert "3.3 bytes for every byte" in advice
    assert "`heliostat dataset materialize ROOT/best best-images`" in advice

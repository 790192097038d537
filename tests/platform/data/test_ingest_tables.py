"""What an ingest decides about columns of images and units, without Ray."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.data.images import DEFAULT_LIMITS, ImageLimits, Reason
from heliostat.data.ingest.checked import (
    CHECKED,
    extend_labels,
    images_of,
    refusals_of,
    unique_images,
    without_known,
)
from heliostat.data.ingest.checking import stop_if_hopeless
from heliostat.data.ingest.rounds import Refusal, Tally, cut_rounds, round_fingerprint, tally_of
from heliostat.data.ingest.second_pass import Plan, plan_round
from heliostat.data.ingest.workspace import Workspace, ingest_id
from heliostat.data.shards import ShardLayout
from heliostat.data.sources import Unit
from heliostat.errors import TooManyRefusedError
from heliostat.storage.local import LocalStore

NAMES = [bytes([first]) + bytes(30) + bytes([last]) for first in (0, 7, 255) for last in (0, 1)]
"""Hashes that end in NUL bytes or differ in the last byte alone."""


def image(source: str, label: str | None = None, name: bytes = NAMES[1]) -> dict[str, Any]:
    return {"id": name, "source": source, "label": label, "width": 1, "height": 1, "size_bytes": 10, "place": "{}"}


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), CHECKED)


def unit(index: int, items: int | None) -> Unit:
    return Unit(index=index, fingerprint=f"{index:064}", items=items, spec="")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["a", "a"], "a"), (["a", None], "a"), ([None, None], None), (["a", "b"], None), ([None, "b", "a"], None)],
)
def test_unique_images__copies_agree_on_a_label_or_have_none(labels: list[str | None], expected: str | None) -> None:
    copies = [image(f"{n}.png", label) for n, label in enumerate(labels)]
    (row,) = unique_images(table(*reversed(copies))).to_pylist()
    assert (row["source"], row["label"]) == ("0.png", expected)


@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from("abcdé"), st.sampled_from([None, "x", "y"])), max_size=20
    )
)
def test_unique_images__are_what_a_loop_over_copies_gives(rows: list[tuple[bytes, str, str | None]]) -> None:
    expected = []
    for name in sorted({name for name, _, _ in rows}):
        labels = {label for other, _, label in rows if other == name and label}
        first = min(source for other, source, _ in rows if other == name)
        expected.append((name, first, labels.pop() if len(labels) == 1 else None))
    found = unique_images(table(*(image(source, label, name) for name, source, label in rows))).to_pylist()
    assert [(row["id"], row["source"], row["label"]) for row in found] == expected


@given(st.lists(st.sampled_from(NAMES), unique=True), st.lists(st.lists(st.sampled_from(NAMES)), max_size=3))
def test_without_known__drops_exactly_the_ids_of_the_dataset(mine: list[bytes], shards: list[list[bytes]]) -> None:
    images = unique_images(table(*(image("a", None, name) for name in mine)))
    known = [np.array(names, "S32") for names in shards]
    left = without_known(images, known)["id"].to_pylist()
    assert left == sorted(set(mine) - {name for names in shards for name in names})


def test_extend_labels__keeps_the_places_of_old_ones() -> None:
    assert extend_labels(("zoo", "cat"), ["ant", None, "zoo", "bee"]) == ("zoo", "cat", "ant", "bee")


def test_images_and_refusals__are_all_rows() -> None:
    refused = {"source": "b", "reason": "empty", "detail": "0 bytes"}
    both = table(image("a"), refused, image("c"))
    assert images_of(both)["source"].to_pylist() == ["a", "c"]
    assert refusals_of(both)["source"].to_pylist() == ["b"]


def test_plan_round__names_a_shard_by_what_it_will_hold() -> None:
    images = unique_images(table(*(image(f"{n}", "cat" if n % 2 else None, name) for n, name in enumerate(NAMES))))
    layout = ShardLayout(group_rows=2, shard_groups=2)
    plans = list(plan_round(images, ("dog", "cat"), layout))
    assert [plan.rows["group"].to_pylist() for plan in plans] == [[0, 0, 1, 1], [0, 0]]
    assert plans[0].rows["index"].to_pylist() == [None, 1, None, 1]
    assert [Plan.from_bytes(plan.to_bytes()).name for plan in plans] == [plan.name for plan in plans]
    other_labels = [plan.name for plan in plan_round(images, ("cat",), layout)]
    other_groups = [plan.name for plan in plan_round(images, ("dog", "cat"), ShardLayout(group_rows=1, shard_groups=4))]
    assert not {plan.name for plan in plans} & {*other_labels, *other_groups}
    assert list(plan_round(images.slice(0, 0), (), layout)) == []


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], []),
        ([5], [[0]]),
        ([5, 5, 5, 1], [[0, 1], [2, 3]]),
        ([50, 1], [[0], [1]]),  # a unit is never cut
        ([0, 0, 10, 0], [[0, 1, 2, 3]]),
        ([None, 1], [[0], [1]]),
    ],
)
def test_cut_rounds__takes_whole_units_up_to_a_bound(items: list[int | None], expected: list[list[int]]) -> None:
    units = [unit(index, count) for index, count in enumerate(items)]
    assert [[each.index for each in some] for some in cut_rounds(units, 10)] == expected


def test_cut_rounds__does_not_look_ahead_further_than_a_unit() -> None:
    looked: list[int] = []

    def units() -> Iterator[Unit]:
        for index in range(1000):
            looked.append(index)
            yield unit(index, 4)

    next(cut_rounds(units(), 8))
    assert len(looked) == 3


def test_round_fingerprint__depends_on_every_unit_and_their_order() -> None:
    units = [unit(index, 1) for index in range(3)]
    prints = [round_fingerprint(some) for some in (units, units[:2], units[::-1], [])]
    assert len(set(prints)) == 4


def test_tally__adds_up_and_remembers_the_first_name() -> None:
    refusals = [{"source": name, "reason": reason, "detail": name} for name, reason in (("z", "empty"), ("k", "empty"))]
    first = tally_of(table(image("a"), *refusals))
    second = tally_of(table({"source": "m", "reason": "truncated", "detail": "half"}))
    total = first + second
    assert (total.usable, total.quarantined, total.checked) == (1, 3, 4)
    assert total.reasons == {"empty": 2, "truncated": 1}
    assert total.in_words() == "(2 empty, 1 truncated); the first is 'k': k"
    assert Tally.model_validate_json(total.model_dump_json()) == total


@pytest.mark.parametrize(
    ("refused", "usable", "share", "stops"),
    [
        (999, 0, 0.5, False),  # too few to judge
        (1000, 0, 0.5, True),
        (500, 500, 0.5, False),
        (501, 499, 0.5, True),
        (10_000, 990_000, 0.01, False),
        (1, 999, 0.0, True),
        (100_000, 0, 1.0, False),
    ],
)
def test_stop_if_hopeless__judges_the_share_of_enough_items(
    refused: int, usable: int, share: float, stops: bool
) -> None:
    tally = Tally(usable=usable, reasons={"empty": refused}, first=Refusal(source="a", detail="b"))
    if not stops:
        stop_if_hopeless(tally, share)
        return
    with pytest.raises(TooManyRefusedError, match=f"{refused} of {refused + usable} items"):
        stop_if_hopeless(tally, share)


@pytest.mark.parametrize("reason", list(Reason))
def test_load_checked__refusals_whose_cause_may_have_passed_are_not_believed(tmp_path: Path, reason: Reason) -> None:
    workspace = Workspace(LocalStore(tmp_path))
    refusal = {"source": "b", "reason": reason.value, "detail": "x"}
    units = [unit(0, 1), unit(1, 2), unit(2, 0), unit(3, 9)]
    records = [table(image("a")), table(image("a"), refusal), table()]
    for each, record in zip(units, records, strict=False):
        workspace.put_checked(each, record)
    passing = {"unreadable", "too-slow", "too-much-memory", "decoder-crashed"}
    assert sorted(workspace.load_checked(units)) == ([0, 2] if reason.value in passing else [0, 1, 2])


def test_ingest_id__is_another_for_whatever_changes_an_image() -> None:
    formats = ImageLimits(formats=frozenset({"PNG"}))
    arguments = [
        ("photos", DEFAULT_LIMITS, None, None),
        ("photos", DEFAULT_LIMITS, 256, None),
        ("photos", DEFAULT_LIMITS, None, "blur-1"),
        ("photos", DEFAULT_LIMITS, None, "blur-2"),
        ("photos", ImageLimits(max_bytes=5), None, None),
        ("photos", formats, None, None),
        ("pictures", DEFAULT_LIMITS, None, None),
    ]
    ids = [ingest_id(*each) for each in arguments]
    assert len(set(ids)) == len(ids)
    assert ids == [ingest_id(*each) for each in arguments]
    assert all(len(one) == len(other) == 16 for one, other in pairwise(ids))

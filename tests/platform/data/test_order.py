from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from heliostat.data.order import SampleOrder

ORDER = SampleOrder("5f" * 32, seed=7, group_rows=(32, 32, 32, 17, 32), window_groups=2)


@st.composite
def orders(draw: st.DrawFn) -> SampleOrder:
    return SampleOrder(
        manifest_hash=draw(st.sampled_from(["ab" * 32, "0" * 64])),
        seed=draw(st.integers(0, 2**32)),
        group_rows=tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=9))),
        window_groups=draw(st.integers(1, 12)),
    )


def test_order__is_frozen_for_ever() -> None:
    assert ORDER.step(3, global_batch=6).tolist() == [126, 127, 10, 125, 122, 15]
    assert ORDER.step(24, global_batch=6).tolist() == [98, 125, 128, 100, 139, 113]  # straddles two epochs
    assert ORDER.positions(10**6, 6).tolist() == [72, 121, 123, 95, 124, 122]


@given(order=orders(), epoch=st.integers(0, 10**6))
def test_order__an_epoch_holds_every_row_exactly_once(order: SampleOrder, epoch: int) -> None:
    assert sorted(order.step(epoch, global_batch=order.rows).tolist()) == list(range(order.rows))


@given(order=orders(), batch=st.integers(1, 40), start=st.integers(0, 20), length=st.integers(1, 6))
def test_step__resumed_steps_continue_the_uninterrupted_stream(
    order: SampleOrder, batch: int, start: int, length: int
) -> None:
    whole = order.positions(0, (start + length) * batch)
    resumed = np.concatenate([order.step(step, batch) for step in range(start, start + length)])
    np.testing.assert_array_equal(resumed, whole[start * batch :])


@given(order=orders(), position=st.integers(0, 300), count=st.integers(0, 60))
def test_positions__are_slices_of_one_stream(order: SampleOrder, position: int, count: int) -> None:
    taken = order.positions(position, count)
    assert taken.shape == (count,)
    np.testing.assert_array_equal(taken, order.positions(0, position + count)[position:])


@given(order=orders(), position=st.integers(0, 200))
def test_stream_from__a_window_mixes_the_rows_of_few_groups_and_no_others(order: SampleOrder, position: int) -> None:
    first, *whole = islice(order.stream_from(position), 4)
    assert len(first) > 0
    for rows in (first, *whole):
        groups = {order.locate(int(row))[0] for row in rows}
        assert len(groups) <= order.window_groups
    for rows in whole:
        groups = {order.locate(int(row))[0] for row in rows}
        assert len(rows) == sum(order.group_rows[group] for group in groups)


@given(order=orders())
def test_locate__is_the_inverse_of_counting_rows_through_the_groups(order: SampleOrder) -> None:
    expected = [(group, row) for group, rows in enumerate(order.group_rows) for row in range(rows)]
    assert [order.locate(row) for row in range(order.rows)] == expected


def test_step__of_a_dataset_smaller_than_a_batch_runs_through_several_epochs() -> None:
    order = SampleOrder("ab" * 32, seed=0, group_rows=(2, 1))
    rows = order.step(5, global_batch=8)  # positions 40 to 48; an epoch has 3
    assert sorted(rows[2:5].tolist()) == sorted(rows[5:8].tolist()) == [0, 1, 2]
    counts = np.bincount(order.positions(0, 3000))
    assert counts.tolist() == [1000, 1000, 1000]


def test_order__depends_on_hash_seed_and_epoch() -> None:
    rows = ORDER.rows
    streams = [
        SampleOrder(manifest_hash, seed, ORDER.group_rows, 2).step(epoch, rows).tolist()
        for manifest_hash in ("5f" * 32, "5e" + "5f" * 31)
        for seed in (7, 8)
        for epoch in (0, 1)
    ]
    assert len({tuple(stream) for stream in streams}) == 8
    # Unrelated orders agree in about one place of the 145; eight would be a pattern.
    assert max(sum(a == b for a, b in zip(streams[0], other, strict=True)) for other in streams[1:]) < 8


def test_order__neighbours_on_disk_end_up_far_apart() -> None:
    order = SampleOrder("ab" * 32, seed=1, group_rows=(64,) * 64, window_groups=16)
    epoch = order.step(0, order.rows)
    gaps = np.abs(np.diff(np.argsort(epoch)))  # between the places of rows n and n + 1
    within_groups = gaps[np.arange(1, order.rows) % 64 != 0]
    # Two random places in a window of B rows are B / 3 apart on average.
    assert abs(within_groups.mean() - 16 * 64 / 3) < 20

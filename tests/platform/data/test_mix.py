"""Shares of a mix at every prefix, and the place of every sample in its own dataset's order."""

from collections import Counter
from math import gcd

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.config.training import DatasetConfig
from heliostat.data.mix import RunOrder, mix_period
from heliostat.data.order import SampleOrder

shares_of_mixes = st.lists(st.integers(1, 60), min_size=1, max_size=7).map(
    lambda shares: tuple(share // gcd(*shares) for share in shares)
)


@st.composite
def run_orders(draw: st.DrawFn) -> RunOrder:
    shares = draw(shares_of_mixes)
    orders = tuple(
        SampleOrder(
            f"{index:064x}",
            seed=draw(st.integers(0, 99)),
            group_rows=tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))),
            window_groups=draw(st.integers(1, 4)),
        )
        for index in range(len(shares))
    )
    return RunOrder(orders, shares)


def test_mix_period__is_frozen_for_ever() -> None:
    assert mix_period((7, 2, 1)).tolist() == [0, 0, 0, 1, 0, 0, 1, 0, 0, 2]


@given(shares=shares_of_mixes)
def test_mix_period__every_prefix_is_within_one_of_the_weights(shares: tuple[int, ...]) -> None:
    period, total = mix_period(shares), sum(shares)
    lengths = np.arange(1, total + 1)
    assert len(period) == total
    for dataset, share in enumerate(shares):
        # Whole numbers: |count - n · share / total| < 1.
        assert (np.abs(np.cumsum(period == dataset) * total - lengths * share) < total).all()


def test_mix_period__of_the_longest_mix_allowed() -> None:
    config = DatasetConfig.model_validate({"mix": ["a=0.50001", "b=0.29999", "c=0.2"]})
    assert config.shares == {"a": 50001, "b": 29999, "c": 20000}
    assert np.bincount(mix_period(tuple(config.shares.values()))).tolist() == [50001, 29999, 20000]


@given(order=run_orders(), start=st.integers(0, 400), count=st.integers(1, 120))
def test_span__each_dataset_goes_through_its_own_order_without_gaps(order: RunOrder, start: int, count: int) -> None:
    datasets, rows = order.span(0, start + count)
    for dataset, own in enumerate(order.orders):
        mine = rows[datasets == dataset]
        np.testing.assert_array_equal(mine, own.positions(0, len(mine)))
    later_datasets, later_rows = order.span(start, count)
    np.testing.assert_array_equal(later_datasets, datasets[start:])
    np.testing.assert_array_equal(later_rows, rows[start:])


@given(order=run_orders(), positions=st.lists(st.integers(0, 300), min_size=1, max_size=30))
def test_at__is_the_span_picked(order: RunOrder, positions: list[int]) -> None:
    datasets, rows = order.span(0, 301)
    found_datasets, found_rows = order.at(positions)
    np.testing.assert_array_equal(found_datasets, datasets[positions])
    np.testing.assert_array_equal(found_rows, rows[positions])


def test_span__a_small_dataset_repeats_whole_epochs_while_a_large_one_goes_through_its_first() -> None:
    small, large = SampleOrder("1" * 64, 3, (4, 4)), SampleOrder("2" * 64, 3, (50,) * 4)
    datasets, rows = RunOrder((small, large), (1, 3)).span(0, 200)
    assert set(Counter(rows[datasets == 0].tolist()).values()) <= {6, 7}  # 50 samples of 8 rows
    assert max(Counter(rows[datasets == 1].tolist()).values()) == 1


@pytest.mark.parametrize(
    ("mix", "shares"),
    [
        (["photos=1"], {"photos": 1}),
        (["photos=0.7", "drawings=0.3"], {"photos": 7, "drawings": 3}),
        (["a=30", "b=20", "c=10"], {"a": 3, "b": 2, "c": 1}),
        (["a=0.333", "b=0.667"], {"a": 333, "b": 667}),
    ],
)
def test_shares__are_whole_numbers_in_the_ratio_of_the_weights(mix: list[str], shares: dict[str, int]) -> None:
    assert DatasetConfig.model_validate({"mix": mix}).shares == shares

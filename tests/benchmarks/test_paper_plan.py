import pytest

from paper_plan import NODES, PlannedStage, Rates, hours_and_cost, in_words, paper_plan

RATES = Rates(
    measures_per_s=100.0,
    copies_per_s=50.0,
    neighbours_core_s=3600.0,
    neighbours_rows=1_000_000,
    exponent=1.0,
    gflops=50.0,
)


def test_paper_plan__follows_from_the_rates() -> None:
    stages = {stage.name: stage for stage in paper_plan(RATES, 36_000_000)}
    assert stages["filter"].core_h == pytest.approx(100)
    assert stages["copy embedding"].core_h == pytest.approx(200)
    assert stages["neighbours"].core_h == pytest.approx(36)
    assert stages["clusters"].core_h == pytest.approx(2 * 36e6 * 1e5 * 1280 * 20 / 50e9 / 3600)
    assert stages["retrieval embedding"].gpu_h == pytest.approx(36e6 * 335e9 / 40e12 / 3600)


def test_paper_plan__neighbours_grow_with_the_exponent() -> None:
    steeper = Rates(100, 50, 3600, 1_000_000, 1.2, 50)
    found = {stage.name: stage.core_h for stage in paper_plan(steeper, 1_000_000_000)}
    assert found["neighbours"] == pytest.approx(1000**1.2 * 1e9 / 2**26)


def test_hours_and_cost__add_cores_and_gpus() -> None:
    hours, usd = hours_and_cost([PlannedStage("a", 96.0 * NODES), PlannedStage("b", 0.0, 8.0 * NODES)])
    assert (hours, usd) == pytest.approx((2.0, NODES * 1.5 + 8 * NODES * 0.8))
    assert "together 2.0 h" in in_words([PlannedStage("a", 96.0 * NODES), PlannedStage("b", 0.0, 8.0 * NODES)])[-1]

"""What the page remembers: the curve of a run however it comes, and however long it is."""

from hypothesis import given
from hypothesis import strategies as st

from heliostat_jobs.board.followed import Curve


def line(step: int, loss: float, **more: float) -> dict[str, object]:
    return {"step": step, "attempt": 1, "time_utc": "", "loss": loss, **more}


def test_curve__of_steps_computed_again_the_newer_ones_count() -> None:
    curve = Curve()
    curve.add([line(step, 1.0) for step in range(10)])
    curve.add([line(step, 2.0) for step in range(5, 8)])
    assert [(point["step"], point["loss"]) for point in curve.to_json()] == [
        *((step + 1, 1.0) for step in range(5)),
        *((step + 1, 2.0) for step in range(5, 8)),
    ]


@given(st.lists(st.integers(1, 700), min_size=1, max_size=12))
def test_curve__stays_small_and_evenly_spread_and_keeps_what_was_judged(pieces: list[int]) -> None:
    curve, step = Curve(), 0
    for size in pieces:
        lines = [
            line(each, float(each), **({"knn_top1": 0.5} if each % 1000 == 0 else {}))
            for each in range(step, step + size)
        ]
        curve.add(lines)
        step += size
    points = curve.to_json()
    judged = -(-step // 1000)
    assert len(points) <= 800 + judged
    assert len(points) >= min(step, 400)
    assert all(point["loss"] == point["step"] - 1 for point in points)
    assert sum(point["knn_top1"] is not None for point in points) == judged
    steps = [point["step"] for point in points]
    assert steps == sorted(set(steps))

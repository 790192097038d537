import cmath
import math
import random
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.closed_form import det
from support.golden import GOLDEN, close

from heliostat.config.model import RopeConfig
from heliostat.data.draws import Draws
from heliostat.models.positions import RopeJitter, at_grid, draw_rope_jitter, resize_positions, rope_table, rotate

CPU = torch.device("cpu")
MODES: dict[str, Literal["offset", "antialias", "size"]] = {
    "offset0.1": "offset",
    "antialias": "antialias",
    "size_noaa": "size",
}
JITTER = RopeJitter(shift_h=0.25, shift_w=-0.125, stretch_h=0.75, stretch_w=1.5, rescale=1.25)
SIDES = st.integers(1, 6)


@pytest.mark.parametrize("entry", list(GOLDEN["pos_interp"]))
def test_resize_positions__published_numbers(entry: str) -> None:
    mode, pixels = entry.split("/")
    height_px, width_px = map(int, pixels.split("x"))
    table = det((1, 1 + 37 * 37, 2), 1)
    found = resize_positions(table, height_px // 14, width_px // 14, MODES[mode])
    expected = GOLDEN["pos_interp"][entry]
    assert found.shape == (1, expected["n"], 2)
    assert torch.equal(found[:, :1], table[:, :1])
    patches_PD = found[0, 1:]
    close(patches_PD[:3], expected["first3"])
    close(patches_PD[-1], expected["last"])
    close(patches_PD.abs().sum(0), expected["abs"])
    # Its terms cancel, so what their rounding adds is measured against the sum of their sizes (and the table's, 1).
    error = (patches_PD.sum(0) - torch.tensor(expected["sum"])).abs()
    assert (error <= 1e-7 * (1 + torch.tensor(expected["abs"]))).all()


def cubic_weight(distance: float) -> float:
    """The cubic convolution kernel with a = -0.75."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def cubic_axis(size: int, step: float, count: int) -> torch.Tensor:
    """What each of ``count`` samples takes of ``size`` values, (count, size); values beyond an edge repeat it."""
    weights = torch.zeros(count, size, dtype=torch.float64)
    for sample in range(count):
        centre = (sample + 0.5) * step - 0.5
        for source in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[sample, min(max(source, 0), size - 1)] += cubic_weight(centre - source)
    return weights


@given(grid=st.integers(1, 6), rows=SIDES, columns=SIDES, mode=st.sampled_from(["offset", "size"]), seed=st.integers(0))
def test_resize_positions__equals_cubic_convolution_in_float64(
    grid: int, rows: int, columns: int, mode: Literal["offset", "size"], seed: int
) -> None:
    table = torch.randn(1, 1 + grid**2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed % 2**63))
    found = resize_positions(table, rows, columns, mode)
    if rows == columns == grid:
        assert torch.equal(found, table)
        return
    offset = 0.1 if mode == "offset" else 0.0
    down, across = (cubic_axis(grid, grid / (count + offset), count) for count in (rows, columns))
    expected = torch.einsum("rg,ch,ghd->rcd", down, across, table[0, 1:].view(grid, grid, 3)).flatten(0, 1)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[0, 1:], expected, rtol=0, atol=1e-12)
    assert torch.equal(found[:, 0], table[:, 0])


@pytest.mark.parametrize("mode", MODES.values())
def test_resize_positions__narrow_types_are_resized_in_fp32(mode: Literal["offset", "antialias", "size"]) -> None:
    table = det((1, 50, 8), 3).bfloat16()
    found = resize_positions(table, 5, 9, mode)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, resize_positions(table.float(), 5, 9, mode).bfloat16())


@pytest.mark.parametrize("mode", MODES.values())
def test_resize_positions__own_grid_is_the_table(mode: Literal["offset", "antialias", "size"]) -> None:
    table = det((1, 17, 3), 0)
    assert resize_positions(table, 4, 4, mode) is table
    # As many patches, but another grid: not the table.
    assert not torch.equal(resize_positions(table, 2, 8, mode), table)


@pytest.mark.parametrize("mode", MODES.values())
def test_resize_positions__every_position_learns(mode: Literal["offset", "antialias", "size"]) -> None:
    table = det((1, 17, 1), 0).requires_grad_()
    resize_positions(table, 3, 5, mode).sum().backward()
    assert table.grad is not None and (table.grad != 0).all()


@pytest.mark.parametrize(("positions", "rows"), [(1, 3), (16, 3), (18, 3), (17, 0)])
def test_resize_positions__refuses_what_is_no_grid(positions: int, rows: int) -> None:
    with pytest.raises(ValueError, match=r"square grid|has none"):
        resize_positions(torch.zeros(1, positions, 2), rows, 3, "size")


def rope_angles(config: RopeConfig, rows: int, columns: int, width: int, jitter: RopeJitter) -> list[list[float]]:
    """The width / 2 angles of each patch, one by one."""
    sides = {"separate": (rows, columns), "min": (min(rows, columns),) * 2, "max": (max(rows, columns),) * 2}
    side_h, side_w = sides[config.normalise]
    angles = []
    for patch in range(rows * columns):
        row, column = divmod(patch, columns)
        h = (2 * (row + 0.5) / side_h - 1 + jitter.shift_h) * jitter.stretch_h * jitter.rescale
        w = (2 * (column + 0.5) / side_w - 1 + jitter.shift_w) * jitter.stretch_w * jitter.rescale
        periods = [config.base ** (2 * j / (width / 2)) for j in range(width // 4)]
        angles.append([2 * math.pi * coordinate / period for coordinate in (h, w) for period in periods])
    return angles


@pytest.mark.parametrize("jitter", [None, JITTER])
@pytest.mark.parametrize("normalise", ["separate", "min", "max"])
@given(rows=SIDES, columns=SIDES, quarter=st.integers(1, 4), base=st.sampled_from([2.0, 100.0, 10_000.0]))
def test_rope__equals_complex_numbers_turned_one_by_one(
    rows: int, columns: int, quarter: int, base: float, normalise: Literal["separate", "min", "max"], jitter: RopeJitter
) -> None:
    config = RopeConfig(base=base, normalise=normalise)
    half = 2 * quarter
    x = det((2, 3, 2 + rows * columns, 2 * half), 5)
    sin, cos = rope_table(config, rows, columns, 2 * half, jitter, CPU)
    assert sin.shape == cos.shape == (rows * columns, 2 * half)
    assert sin.dtype == cos.dtype == torch.float32
    expected = x.clone()
    for patch, angles in enumerate(rope_angles(config, rows, columns, 2 * half, jitter or RopeJitter())):
        for pair, angle in enumerate(angles):
            turned = torch.complex(x[..., 2 + patch, pair], x[..., 2 + patch, half + pair]) * cmath.rect(1, angle)
            expected[..., 2 + patch, pair], expected[..., 2 + patch, half + pair] = turned.real, turned.imag
    found = rotate(x, sin, cos)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert torch.equal(found[..., :2, :], x[..., :2, :])


@given(rows=st.integers(2, 5), columns=st.integers(2, 5), seed=st.integers(0, 1000))
def test_rope__scores_depend_on_the_difference_of_coordinates_only(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 16, generator=generator)
    sin, cos = rope_table(RopeConfig(), rows, columns, 16, None, CPU)
    everywhere = (1, 1, rows * columns, 16)
    q, k = rotate(query.expand(everywhere), sin, cos), rotate(key.expand(everywhere), sin, cos)
    scores = (q @ k.transpose(-1, -2))[0, 0].view(rows, columns, rows, columns)
    # Patches one further along both axes: the same differences.
    torch.testing.assert_close(scores[1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1], rtol=0, atol=2e-4)
    assert (scores[0, 0, 0, 0] - scores[0, 0]).abs().max() > 1e-2, "scores say nothing of the positions"


@given(rows=SIDES, columns=SIDES, seed=st.integers(0, 1000), others=st.integers(0, 5))
def test_rotate__keeps_norms_and_leading_tokens(rows: int, columns: int, seed: int, others: int) -> None:
    x = torch.randn(2, 1, others + rows * columns, 8, generator=torch.Generator().manual_seed(seed))
    found = rotate(x, *rope_table(RopeConfig(), rows, columns, 8, JITTER, CPU))
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(found[:, :, :others], x[:, :, :others])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rotate__keeps_the_type(dtype: torch.dtype) -> None:
    x = det((1, 2, 7, 8), 2).to(dtype)
    tables = rope_table(RopeConfig(), 2, 3, 8, None, CPU)
    found = rotate(x, *tables)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), rotate(x.float(), *tables), rtol=0, atol=2e-2)


@pytest.mark.parametrize("normalise", ["separate", "min", "max"])
def test_rope_table__neutral_jitter_is_none(normalise: Literal["separate", "min", "max"]) -> None:
    config = RopeConfig(normalise=normalise)
    plain, neutral, other = (rope_table(config, 3, 5, 16, jitter, CPU) for jitter in (None, RopeJitter(), JITTER))
    assert torch.equal(plain[0], neutral[0]) and torch.equal(plain[1], neutral[1])
    assert not torch.allclose(plain[0], other[0])


FULL = RopeConfig(shift=0.5, stretch=1.5, rescale=2.0)


def test_draw_rope_jitter__is_a_function_of_the_stream() -> None:
    first, again, later = (draw_rope_jitter(FULL, Draws(1, "rope", step, 0)) for step in (7, 7, 8))
    assert first == again != later


def test_draw_rope_jitter__is_none_where_nothing_jitters() -> None:
    draws, untouched = random.Random(0), random.Random(0)
    assert draw_rope_jitter(RopeConfig(rescale=None), draws) is None
    assert draws.random() == untouched.random()


def test_draw_rope_jitter__parts_do_not_disturb_each_other() -> None:
    full = draw_rope_jitter(FULL, Draws(3, "rope"))
    assert full is not None
    assert draw_rope_jitter(RopeConfig(), Draws(3, "rope")) == RopeJitter(rescale=full.rescale)
    stretched = RopeJitter(stretch_h=full.stretch_h, stretch_w=full.stretch_w)
    assert draw_rope_jitter(RopeConfig(rescale=None, stretch=1.5), Draws(3, "rope")) == stretched
    shifted = RopeJitter(shift_h=full.shift_h, shift_w=full.shift_w)
    assert draw_rope_jitter(RopeConfig(rescale=None, shift=0.5), Draws(3, "rope")) == shifted


def test_draw_rope_jitter__fills_its_ranges() -> None:
    drawn = [draw_rope_jitter(FULL, Draws(0, "rope", step)) for step in range(400)]
    jitters = [jitter for jitter in drawn if jitter is not None]
    assert len(jitters) == 400
    limits = {"shift_h": 0.5, "shift_w": 0.5}
    limits |= {"stretch_h": math.log(1.5), "stretch_w": math.log(1.5), "rescale": math.log(2.0)}
    for name, limit in limits.items():
        values = [getattr(jitter, name) for jitter in jitters]
        centred = values if name.startswith("shift") else [math.log(value) for value in values]
        assert -limit <= min(centred) < -0.9 * limit and 0.9 * limit < max(centred) <= limit
        assert abs(sum(centred) / 400) < 0.15 * limit, f"{name} is not centred on no change"


def test_at_grid__resizes_position_embeddings_of_a_whole_network_and_nothing_else() -> None:
    weights = {"backbone.pos_embed": det((1, 17, 2), 1), "backbone.norm.weight": det((2,), 2)}
    found = at_grid(weights, 6, "antialias")
    assert list(found) == list(weights)
    assert torch.equal(found["backbone.norm.weight"], weights["backbone.norm.weight"])
    assert torch.equal(found["backbone.pos_embed"], resize_positions(weights["backbone.pos_embed"], 6, 6, "antialias"))

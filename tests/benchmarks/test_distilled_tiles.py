"""The tiles that students are compared on."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from distilled_tiles import ASKED, TRAIN, at_short_side, cut, divide, side_of, write_files
from heliostat_jobs.photographs import TILE_PX, Pixels


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(1, 300), st.integers(1, 300))
def test_cut__gives_every_whole_tile_once(height: int, width: int) -> None:
    image = np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3)
    seen: set[int] = set()
    for row, column, tile in cut(image):  # type: ignore[arg-type]  # wider numbers tell every pixel apart
        assert tile.shape == (TILE_PX, TILE_PX, 3)
        assert tile[0, 0, 0] == image[row * TILE_PX, column * TILE_PX, 0]
        assert not seen & set(tile.ravel().tolist())
        seen |= set(tile.ravel().tolist())
    assert len(seen) == (height // TILE_PX) * (width // TILE_PX) * TILE_PX**2 * 3


@pytest.mark.parametrize(
    ("size", "expected"), [((768, 1000), (384, 500)), ((500, 384), (500, 384)), ((96, 48), (768, 384))]
)
def test_at_short_side__keeps_the_shape_of_a_photograph(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert at_short_side(picture(*size)).shape == (*expected, 3)


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(8, 8, seed)).save(path)


def test_divide__puts_each_tile_on_one_side_and_leaves_out_what_two_photographs_have(tmp_path: Path) -> None:
    for seed in range(60):
        write(tmp_path / "all" / f"photograph-{seed % 3}" / f"{seed:02d}-00.png", seed)
    write(tmp_path / "all" / "photograph-0" / "90-00.png", 3)  # again in the same one, number 0
    write(tmp_path / "all" / "photograph-1" / "91-00.png", 5)  # of number 2 as well
    assert divide(tmp_path / "all", tmp_path) == 2
    sides = {
        side: {(path.parent.name, path.name): path.read_bytes() for path in (tmp_path / side).rglob("*.png")}
        for side in (TRAIN, ASKED)
    }
    assert sum(map(len, sides.values())) == 60
    assert not set(sides[TRAIN].values()) & set(sides[ASKED].values())
    assert len(sides[ASKED]) < len(sides[TRAIN])
    twice = [side for side, files in sides.items() if ("photograph-0", "90-00.png") in files]
    assert [("photograph-0", "03-00.png") in sides[side] for side in twice] == [True]
    names = {name for files in sides.values() for name in files}
    assert not names & {("photograph-1", "91-00.png"), ("photograph-2", "05-00.png")}


def test_side_of__asks_a_third() -> None:
    asked = [side_of(f"{first:02x}{'0' * 62}") == ASKED for first in range(256)]
    assert sum(asked) == 86


def test_write_files__takes_the_demos_photographs_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIOSTAT_TEST_DATA", str(tmp_path / "elsewhere"))
    assert write_files(tmp_path / "all").startswith("the demo's photographs")
    assert len(list((tmp_path / "all").iterdir())) == 18


def test_write_files__names_a_photograph_that_cannot_be_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "clothing_cc0" / "train" / "hat" / "broken.jpg"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no photograph")
    monkeypatch.setenv("HELIOSTAT_TEST_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"broken\.jpg cannot be decoded"):
        write_files(tmp_path / "all")


@pytest.mark.data
@pytest.mark.parametrize(("photograph_of", "least"), [(8, 100), (40, 20)])
def test_write_files__cuts_photographs_of_all_kinds(photograph_of: int, least: int, tmp_path: Path) -> None:
    data = os.environ.get("HELIOSTAT_TEST_DATA")
    if data is None:
        pytest.skip("HELIOSTAT_TEST_DATA is not set")
    assert write_files(tmp_path / "all", photograph_of) == "clothing_cc0"
    photographs = {path.name for path in (tmp_path / "all").iterdir()}
    kinds = {path.parent.name for path in (Path(data) / "clothing_cc0").rglob("*.jpg") if path.stem in photographs}
    assert len(photographs) >= least
    assert len(kinds) == 10

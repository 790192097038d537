import numpy as np
import pytest
import torch
from support.curation_pictures import scene

from heliostat.curation.calibration import Planted, calibrate, judge, plant
from heliostat.curation.copies import COPIES, HARD_COPIES, Copy, mirrored, training_view
from heliostat.curation.copy_training import contrast
from heliostat.curation.dct_hash import dct_hashes
from heliostat.curation.kmeans import Floats, normalised
from heliostat.data.decode import RgbImage
from heliostat.data.draws import Draws

SCENES = [scene(number, 120) for number in range(40)]


def hashed(images: object) -> Floats:
    return dct_hashes(images).astype(np.float32)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "make"), [*COPIES.items(), *HARD_COPIES.items()])
def test_copies__show_the_same_and_are_not_the_same(name: str, make: Copy) -> None:
    for number, image in enumerate(SCENES[:5]):
        before = image.copy()
        copy = make(image, Draws(0, name, number))
        assert np.array_equal(image, before)
        assert copy.dtype == np.uint8
        assert not (copy.shape == image.shape and np.array_equal(copy, image))
        assert np.array_equal(copy, make(image, Draws(0, name, number)))
    assert np.array_equal(mirrored(mirrored(SCENES[0], Draws(0, "")), Draws(0, "")), SCENES[0])


def test_dct_hashes__find_light_copies_and_tell_scenes_apart() -> None:
    kinds = {name: COPIES[name] for name in ("recompressed", "resized", "recoloured")}
    threshold = calibrate([plant(SCENES, {name: make}, hashed, 0) for name, make in kinds.items()])
    found = judge(plant(SCENES, kinds, hashed, 0), threshold)
    assert found.precision >= 0.98
    assert found.recall >= 0.98


def test_calibrate__gives_no_kind_up_for_another() -> None:
    """Three images at right angles, with copies at an angle of their own."""

    def copies_at(cosine: float) -> Planted:
        vectors = np.zeros((6, 6), dtype=np.float32)
        for number in range(3):
            vectors[number, 2 * number] = 1
            vectors[3 + number, 2 * number : 2 * number + 2] = cosine, (1 - cosine**2) ** 0.5
        return Planted(vectors, np.tile(np.arange(3), 2))

    easy, hard = copies_at(0.9), copies_at(0.6)
    assert calibrate([easy]) == pytest.approx(0.9, abs=0.0051)
    assert calibrate([easy, hard]) == calibrate([hard, easy]) == pytest.approx(0.6, abs=0.0051)


def test_judge__counts_pairs_within_components() -> None:
    # Two images of three views each; one view is missed, and nothing is joined wrongly.
    vectors = normalised(np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1], [0, 1], [1, 1]])).astype(np.float32)
    found = judge(Planted(vectors, np.array([0, 0, 1, 1, 1, 0])), 0.9)
    assert (found.precision, found.recall) == (1.0, 4 / 6)
    everything = judge(Planted(vectors, np.array([0, 0, 1, 1, 1, 0])), 0.0)
    assert (everything.precision, everything.recall) == (6 / 15, 1.0)


def test_contrast__is_the_cross_entropy_of_each_other_view() -> None:
    views = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = 0.0
    for row in range(6):
        others = [other for other in range(6) if other != row]
        logits = torch.stack([views[row] @ views[other] / 0.1 for other in others])
        expected -= float(logits.log_softmax(0)[others.index((row + 3) % 6)]) / 6
    assert float(contrast(views, 0.1)) == pytest.approx(expected, rel=1e-5)


def test_training_view__is_a_square_and_follows_from_its_draws() -> None:
    views = [training_view(SCENES[0], 48, Draws(0, "view", number)) for number in range(8)]
    assert {view.shape for view in views} == {(48, 48, 3)}
    assert len({view.tobytes() for view in views}) == 8
    again: RgbImage = training_view(SCENES[0], 48, Draws(0, "view", 3))
    assert np.array_equal(again, views[3])

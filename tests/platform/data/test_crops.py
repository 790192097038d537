import numpy as np
import pytest
from support.worlds import encoded_images

from heliostat.config.pretrain import AugmentationConfig
from heliostat.data.augment import all_crops, undistorted_crops
from heliostat.data.crops import slot_crops
from heliostat.data.images import decode_rgb
from heliostat.errors import RejectedImageError

CONFIG = AugmentationConfig(global_px=16, local_px=8, local_count=3)


def test_slot_crops__are_crop_major() -> None:
    images = encoded_images()[:4]
    positions = [12, 13, 14, 40]
    crops = slot_crops(CONFIG, 5, positions, images, gram_px=24)
    assert crops.gram_crops is not None
    assert crops.gram_crops.shape == (8, 24, 24, 3)
    assert (crops.global_crops.shape, crops.local_crops.shape) == ((8, 16, 16, 3), (12, 8, 8, 3))
    for image, (position, data) in enumerate(zip(positions, images, strict=True)):
        whole, local = all_crops(CONFIG, 5, position, decode_rgb(data))
        for view in range(2):
            np.testing.assert_array_equal(crops.global_crops[view * 4 + image], whole[view])
            undistorted = undistorted_crops(CONFIG, 5, position, decode_rgb(data), 24)
            np.testing.assert_array_equal(crops.gram_crops[view * 4 + image], undistorted[view])
        for view in range(3):
            np.testing.assert_array_equal(crops.local_crops[view * 4 + image], local[view])


def test_slot_crops__a_sample_looks_the_same_in_any_company() -> None:
    images = encoded_images()
    alone = slot_crops(CONFIG, 5, [77], images[3:4])
    together = slot_crops(CONFIG, 5, [4, 77], [images[9], images[3]])
    np.testing.assert_array_equal(together.global_crops[1::2], alone.global_crops)
    np.testing.assert_array_equal(together.local_crops[1::2], alone.local_crops)
    assert alone.gram_crops is None


def test_slot_crops__what_cannot_be_decoded_is_named() -> None:
    with pytest.raises(RejectedImageError, match="HS-DATA-006"):
        slot_crops(CONFIG, 5, [0], [b"no image"])

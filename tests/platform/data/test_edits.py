import numpy as np
import pytest
from PIL import Image
from support.hostile import PHOTO, encode

from heliostat.data.codecs import format_of
from heliostat.data.decode import decode_rgb
from heliostat.data.edits import edited, open_edit
from heliostat.errors import InvalidValueError, PluginFailedError

BLACKEN = "support.image_edits:BlackenRed"


def photo(red: int, blue: int, kind: str) -> bytes:
    pixels = np.array(PHOTO.convert("RGB").resize((40, 30))) // 4
    pixels[..., 0] += np.uint8(red)
    pixels[..., 2] += np.uint8(blue)
    return encode(Image.fromarray(pixels), kind)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_edited__holds_what_the_plugin_made_in_the_same_kind_of_file(kind: str) -> None:
    data = photo(150, 0, kind)
    found = edited(data, BLACKEN, "a.jpg")
    assert format_of(found) == kind
    before, after = decode_rgb(data), decode_rgb(found)
    assert after.shape == before.shape
    assert after[:12].max() < 40
    assert np.abs(after[16:].astype(int) - before[16:]).mean() < 6


def test_edited__leaves_the_file_alone_where_no_pixel_changes() -> None:
    data = photo(0, 150, "JPEG")
    assert edited(data, BLACKEN, "a.jpg") is data


@pytest.mark.parametrize(
    ("plugin", "fact"),
    [("Failing", "failed on 'a.jpg': ZeroDivisionError: no face"), ("Greying", r"no image of \(height, width, 3\)")],
)
def test_edited__names_the_plugin_and_the_image_where_it_fails(plugin: str, fact: str) -> None:
    with pytest.raises(PluginFailedError, match=fact):
        edited(photo(0, 150, "PNG"), f"support.image_edits:{plugin}", "a.jpg")


@pytest.mark.parametrize(
    ("source", "fact"),
    [
        ("nothing", "there is no plug-in 'nothing'"),
        ("support.image_edits:Missing", "AttributeError"),
        ("no_such_module:edit", "ModuleNotFoundError"),
        ("collections:Counter", "gives Counter, which has no fingerprint"),
    ],
)
def test_open_edit__says_what_is_missing(source: str, fact: str) -> None:
    with pytest.raises(InvalidValueError, match=fact):
        open_edit(source)

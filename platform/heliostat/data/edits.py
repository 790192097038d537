"""Images changed by a plug-in while they are ingested: faces blurred, marks removed, whatever must never be stored.

A plug-in is a function without arguments, named ``package.module:function``, that gives an ``ImageEdit``. It sees every
image that is accepted, before anything of it is stored; if it fails, the ingest stops: no image gets in unseen.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol, cast

import numpy as np
from PIL import Image

from heliostat.config.plugins import open_plugin
from heliostat.data.decode import RgbImage, decode_rgb
from heliostat.data.encode import encoded_like
from heliostat.errors import PluginFailedError

Edit = Callable[[RgbImage], RgbImage]
"""(H, W, 3) uint8 to the same, of any size. May write into what it is given. No change leaves the file as it is."""


class ImageEdit(Protocol):
    """What changes images. An ingest is another one as soon as the fingerprint is."""

    @property
    def fingerprint(self) -> str:
        """Of everything that the result depends on, weights included."""

    def open(self) -> Edit:
        """What does it, in the process that does; called once there."""


def open_edit(source: str) -> ImageEdit:
    """The edit of a plug-in.

    Raises:
        InvalidValueError: it is not there, or gives something else.
    """
    return cast(ImageEdit, open_plugin(source, ("fingerprint", "open"), "heliostat.data.edits.ImageEdit"))


def edited(data: bytes, source: str, name: str) -> bytes:
    """An accepted image after an edit; byte for byte the same if no pixel changed.

    Args:
        data: The file.
        source: Of the plug-in, which is opened once per process.
        name: Of the image, for the error.

    Raises:
        PluginFailedError: the plug-in raised something, or did not give an image.
    """
    pixels = decode_rgb(data)
    try:
        changed = _opened(source)(pixels.copy())
    except Exception as error:  # anything may come out of code that is not ours
        raise PluginFailedError(
            f"{source} failed on {name!r}: {type(error).__name__}: {error}",
            "Repair the plug-in; the same command goes on from here",
        ) from error
    if not _is_image(changed):
        raise PluginFailedError(
            f"{source} gave no image of (height, width, 3) bytes for {name!r}",
            "Give an array of uint8 with three channels; the same command goes on from here",
        )
    return data if np.array_equal(changed, pixels) else encoded_like(Image.fromarray(changed), data)


def _is_image(found: object) -> bool:
    return (
        isinstance(found, np.ndarray)
        and found.dtype == np.uint8
        and found.ndim == 3
        and found.shape[2] == 3
        and found.size > 0
    )


@lru_cache(maxsize=1)
def _opened(source: str) -> Edit:
    return open_edit(source).open()

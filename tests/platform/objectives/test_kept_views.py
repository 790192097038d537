"""What a teacher says, packed image by image and taken apart again."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from heliostat.objectives.kept_views import pack, unpack
from heliostat.objectives.networks import TeacherView

side = st.integers(1, 4)


@given(st.integers(1, 5), st.lists(st.tuples(side, side), min_size=1, max_size=3), st.tuples(side, side), st.data())
def test_unpack__gives_back_what_was_packed_image_by_image(
    images: int, grids: list[tuple[int, int]], widths: tuple[int, int], data: st.DataObject
) -> None:
    draws = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    of_cls, of_patch = widths
    maps = [torch.randn(2 * images, rows * columns, of_patch, generator=draws) for rows, columns in grids]
    view = TeacherView(torch.randn(2, images, of_cls, generator=draws), tuple(each.flatten(0, 1) for each in maps))
    kept = pack(view, np.dtype(np.float32))
    assert kept.shape == (images, 2, 1 + sum(rows * columns for rows, columns in grids), max(widths))
    order = torch.randperm(images, generator=draws)
    again = unpack(torch.from_numpy(kept)[order], grids, widths)
    assert torch.equal(again.cls, view.cls[:, order])
    both = torch.cat([order, images + order])
    for mine, theirs in zip(again.patches, maps, strict=True):
        assert torch.equal(mine, theirs[both].flatten(0, 1))

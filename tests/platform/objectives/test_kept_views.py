"""What a teacher says, packed image by image and taken apart again."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from heliostat.objectives.kept_views import pack, unpack
from heliostat.objectives.teacher_view import Shown, TeacherView, Vectors, Widths

side = st.integers(1, 4)
PARTS = [(True, False, False), (True, True, True), (False, True, True), (False, True, False), (True, True, False)]


@given(st.integers(1, 5), st.lists(side, min_size=1, max_size=3), st.tuples(side, side, side), st.data())
def test_unpack__gives_back_what_was_packed_image_by_image(
    images: int, sides: list[int], sizes: tuple[int, int, int], data: st.DataObject
) -> None:
    draws = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    widths, patches = Widths(*sizes), [side * (side + 1) for side in sides]
    shown = Shown(tuple(range(len(sides))), *data.draw(st.sampled_from(PARTS)))

    def vectors(of_cls: int, of_patch: int, has_patches: bool) -> Vectors:
        maps = [torch.randn(2 * images * count, of_patch, generator=draws) for count in patches if has_patches]
        return Vectors(torch.randn(2, images, of_cls, generator=draws), tuple(maps))

    view = TeacherView(
        vectors(widths.cls_bottleneck, widths.patch_bottleneck, True) if shown.bottlenecks else None,
        vectors(widths.token, widths.token, shown.patch_tokens) if shown.cls_tokens else None,
    )
    kept = pack(view, np.dtype(np.float32))
    assert kept.size == sum(tensor.numel() for tensor in view.tensors)
    assert kept.shape[:2] == (images, 2)
    order = torch.randperm(images, generator=draws)
    again = unpack(torch.from_numpy(kept)[order], shown, patches, widths)
    both = torch.cat([order, images + order])
    for mine, theirs in zip((again.bottlenecks, again.tokens), (view.bottlenecks, view.tokens), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is None or theirs is None:
            continue
        assert torch.equal(mine.cls, theirs.cls[:, order])
        assert len(mine.patches) == len(theirs.patches)
        for found, expected in zip(mine.patches, theirs.patches, strict=True):
            assert torch.equal(found, expected.unflatten(0, (2 * images, -1))[both].flatten(0, 1))

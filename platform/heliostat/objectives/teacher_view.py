"""What a teacher says of a slot, as tensors.

Legend: B images, M compared patches of a slot, W width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shown:
    """What of it students need."""

    patch_px: tuple[int, ...]
    """Sizes of their patches."""
    bottlenecks: bool = True
    """Vectors that its heads compare with prototypes."""
    cls_tokens: bool = False
    """Its own class tokens."""
    patch_tokens: bool = False
    """Its own patch tokens, besides."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """One vector for each class token and each patch."""

    cls: Tensor
    """(2, B, W)."""
    patches: tuple[Tensor, ...]
    """(M, W), at the compared positions in row order; one for each of the students' sizes of patches."""


@dataclass(frozen=True, slots=True)
class TeacherView:
    """What the teacher says of a slot."""

    bottlenecks: Vectors | None
    """Unit vectors."""
    tokens: Vectors | None = None
    """Its normalised tokens."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of ``parts``."""
        found = [each for each in (self.bottlenecks, self.tokens) if each is not None]
        return tuple(tensor for each in found for tensor in (each.cls, *each.patches))


def view_of(shown: Shown, tensors: Sequence[Tensor]) -> TeacherView:
    """The view whose ``tensors`` these are."""
    rest = iter(tensors)
    bottlenecks = Vectors(next(rest), tuple(next(rest) for _ in shown.patch_px)) if shown.bottlenecks else None
    tokens = Vectors(next(rest), tuple(rest)) if shown.cls_tokens else None
    return TeacherView(bottlenecks, tokens)


@dataclass(frozen=True, slots=True)
class Widths:
    """Of a teacher's vectors."""

    cls_bottleneck: int
    patch_bottleneck: int
    token: int


def parts(shown: Shown, patches: Sequence[int], widths: Widths) -> Iterator[tuple[int | None, int]]:
    """Of each tensor of a view: patches of a crop, or None for class tokens, and width.

    Args:
        shown: What the view holds.
        patches: Of a crop, for each of the students' sizes of patches.
        widths: Of the teacher's vectors.
    """
    if shown.bottlenecks:
        yield None, widths.cls_bottleneck
        yield from ((count, widths.patch_bottleneck) for count in patches)
    if shown.cls_tokens:
        yield None, widths.token
    if shown.patch_tokens:
        yield from ((count, widths.token) for count in patches)

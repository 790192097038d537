"""A factor on the loss that keeps fp16 gradients from vanishing: as large as they can bear.

Gradients in fp16 are zero below 6e-8. The loss is multiplied by a power of two, the gradient divided by it before it is
used. A gradient that overflows lowers the factor, and the step is computed again: no step is lost to it. Source:
Micikevicius et al., arXiv 1710.03740, section 3.2.
"""

from dataclasses import dataclass

_FIRST = 2.0**16
_GROWS_AFTER_STEPS = 2000
_LARGEST = 2.0**24


@dataclass(frozen=True, slots=True)
class LossScale:
    """The factor, and the steps that it has held for."""

    factor: float = 1.0
    good_steps: int = 0

    @classmethod
    def for_precision(cls, precision: str) -> "LossScale":
        """The first one of a run."""
        return cls(_FIRST) if precision == "fp16" else cls()

    @property
    def can_fall(self) -> bool:
        """Whether a smaller factor is left to try."""
        return self.factor > 1

    def lower(self) -> "LossScale":
        """After a gradient that was not finite."""
        return LossScale(self.factor / 2)

    def held(self, precision: str) -> "LossScale":
        """After a step: twice as much after many."""
        if precision != "fp16":
            return self
        if self.good_steps + 1 < _GROWS_AFTER_STEPS:
            return LossScale(self.factor, self.good_steps + 1)
        return LossScale(min(self.factor * 2, _LARGEST))

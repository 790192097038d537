"""Whether a network that was good before gets worse in the first steps of going on with it.

Fresh heads and a fresh optimizer can undo in a few hundred steps what a backbone has learnt. So it is judged before its
first step, whenever the run is judged while the learning rate rises or parts of it are frozen, and at the end of that.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from heliostat.config.adapt import AdaptRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.observe.events import EventType, read_events
from heliostat.observe.metrics import KNN
from heliostat.storage import Store

TOLERANCE = 0.01
"""Share of the queries that k-NN may lose before somebody is told: less is noise."""


def first_steps_of(recipe: TrainingRecipe) -> int:
    """Steps in which a network that is gone on with is watched; 0 of other runs.

    Until all of it learns, and as many steps more as the learning rate takes to rise: what is frozen cannot get worse.
    """
    if not isinstance(recipe, AdaptRecipe):
        return 0
    training = recipe.training
    return min(training.steps, training.freeze_backbone_steps + training.unfreeze_steps + training.warmup_steps)


@dataclass(frozen=True, slots=True)
class Fall:
    """How far k-NN has fallen."""

    before: float
    after: float

    @property
    def advice(self) -> str:
        """What it is and what helps, in a sentence."""
        return (
            f"k-NN is {self.after:.1%}, and was {self.before:.1%} before this run: lower training.base_lr, or raise "
            "training.freeze_backbone_steps"
        )


def fall_of(recipe: TrainingRecipe, step: int, before: float | None, judged: Mapping[str, float]) -> Fall | None:
    """What has got worse when a run is judged after a step of its first ones.

    Args:
        recipe: Of the run.
        step: The step that was made.
        before: k-NN before the first step; None where nobody has judged.
        judged: What the probe says now.
    """
    if before is None or step >= first_steps_of(recipe) or KNN not in judged:
        return None
    return Fall(before, judged[KNN]) if judged[KNN] < before - TOLERANCE else None


def judged_before(run: Store) -> float | None:
    """k-NN before the first step, as an earlier attempt has found it."""
    found = [event for event in read_events(run) if event.type == EventType.START_JUDGED]
    return None if not found else float(found[-1].fields[KNN])

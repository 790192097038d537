"""Which sizes of crops a step has, where a recipe names several: a function of the seed and the step."""

from bisect import bisect_right
from itertools import accumulate

from heliostat.config.adapt import AdaptRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.data.draws import Draws


def of_step(recipe: TrainingRecipe, step: int) -> TrainingRecipe:
    """The recipe with the sizes of crops of a step, which all workers draw alike (DINOv3, arXiv 2508.10104).

    Args:
        recipe: Of the run.
        step: Of the run.
    """
    if not isinstance(recipe, AdaptRecipe) or not recipe.crop_sizes:
        return recipe
    bounds = list(accumulate(sizes.weight for sizes in recipe.crop_sizes))
    drawn = Draws(recipe.seed, "crop sizes", step).unit() * bounds[-1]
    chosen = bisect_right(bounds[:-1], drawn)
    return recipe.at_sizes(recipe.crop_sizes[chosen])

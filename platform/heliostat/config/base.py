"""What all parts of a recipe have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from heliostat.errors import InvalidValueError

Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""A part of a whole, or a probability."""
Range = tuple[float, float]
"""From, to."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""Names of runs and datasets are parts of object keys: lower case, digits, dot, dash, underscore."""
Root = Annotated[str, Field(min_length=1, description="folder or s3://bucket/prefix that holds datasets and runs")]


class Section(BaseModel):
    """A frozen part of a recipe: unknown keys fail, numbers are not guessed from strings, fields document themselves.

    A validator of one field raises ValueError with the rule in words; one that compares fields raises a ConfigError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)

    def origin_of_unset(self, key: str) -> str:
        """Where the value of ``key`` comes from when neither the recipe nor an override sets it."""
        return "default"


def check_run_or_weights(section: str, run: str | None, weights: str | None) -> None:
    """Refuse a section that names trained networks twice, or not at all.

    Raises:
        InvalidValueError: not exactly one of both is set.
    """
    if (run is None) == (weights is None):
        found = "neither is set" if run is None else "both are set"
        raise InvalidValueError(
            f"{section}.run names a run, {section}.weights a backbone from elsewhere, and {found}", "Set one of them"
        )

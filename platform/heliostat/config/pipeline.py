"""``kind: pipeline``: stages that follow one another, each a recipe of its own."""

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from heliostat.config.base import Name, Root, Section
from heliostat.errors import InvalidValueError

EACH = "{each}"
Artifact = Annotated[str, Field(pattern=r"^[a-z0-9{][a-z0-9._{}-]*\.[a-z_]+$")]

TAKES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("curate", "pretrain"): "dataset.name",
        ("pretrain", "evaluate"): "run",
        ("pretrain", "export"): "run",
        ("pretrain", "distill"): "teacher.run",
        ("curate", "distill"): "dataset.name",
        ("distill", "evaluate"): "run",
        ("distill", "export"): "run",
        ("pretrain", "adapt"): "init_from.run",
        ("distill", "adapt"): "init_from.run",
        ("curate", "adapt"): "dataset.name",
        ("adapt", "distill"): "teacher.run",
        ("adapt", "evaluate"): "run",
        ("adapt", "export"): "run",
    }
)
"""The key of a recipe that says what it starts from, by the kinds of the stage before and of its own."""


class StageConfig(Section):
    """One stage, or, with ``each``, several that are alike."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: Name | Annotated[str, Field(pattern=r"^[a-z0-9{][a-z0-9._{}-]*$")] = Field(description="of the stage")
    recipe: str = Field(min_length=1, description="file of its recipe, beside the pipeline's; its name is not used")
    set: tuple[str, ...] = Field((), description="overrides of it, as KEY=VALUE")
    after: tuple[str, ...] = Field((), description="stages that have to be done before")
    source: Artifact | None = Field(
        None,
        alias="from",
        description="what it starts from, as STAGE.ARTIFACT: curate.dataset, pretrain.best or pretrain.last",
    )
    each: tuple[str, ...] = Field(
        (), description=f"makes a stage of each value, which takes the place of {EACH} in all of the stage's texts"
    )
    tries: int = Field(3, ge=1, description="times that it is started, unless the user has to change something first")
    config: dict[str, Any] | None = Field(None, description="the recipe's values; filled in when it is read")

    @field_validator("set", "after", "each", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @property
    def before(self) -> tuple[str, ...]:
        """Stages that have to be done before, the one that it starts from among them."""
        started_from = () if self.source is None else (self.source.rpartition(".")[0],)
        return tuple(dict.fromkeys([*self.after, *started_from]))

    def expanded(self) -> Iterator["StageConfig"]:
        """The stages that it stands for."""
        if not self.each:
            yield self
        for value in self.each:
            texts = {
                "name": self.name.replace(EACH, value),
                "recipe": self.recipe.replace(EACH, value),
                "set": tuple(text.replace(EACH, value) for text in self.set),
                "after": tuple(text.replace(EACH, value) for text in self.after),
                "source": None if self.source is None else self.source.replace(EACH, value),
                "each": (),
            }
            yield self.model_copy(update=texts)


class PipelineRecipe(Section):
    """Stages on one cluster, each started when those before it are done."""

    kind: Literal["pipeline"]
    name: Name = Field(description="name of the pipeline; its stages' jobs are called NAME-STAGE")
    root: Root = "heliostat-root"
    stages: tuple[StageConfig, ...] = Field(min_length=1, description="in any order")

    @field_validator("stages", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @property
    def expanded(self) -> tuple[StageConfig, ...]:
        """All stages, one for each value of ``each``."""
        return tuple(stage for config in self.stages for stage in config.expanded())

    def job_name(self, stage: str) -> str:
        """Of the job of a stage."""
        return f"{self.name}-{stage}"

    @model_validator(mode="after")
    def _is_a_graph(self) -> Self:
        stages = self.expanded
        names = [stage.name for stage in stages]
        for name in names:
            if names.count(name) > 1 or "{" in name:
                raise InvalidValueError(
                    f"stages has the name {name!r} {names.count(name)} times",
                    f"Give each stage a name of its own; one with each needs {EACH} in its name",
                )
        for stage in stages:
            for before in stage.before:
                if before not in names:
                    raise InvalidValueError(
                        f"stage {stage.name} is to come after {before}, which there is not",
                        f"The stages are {', '.join(names)}",
                    )
        try:
            TopologicalSorter({stage.name: stage.before for stage in stages}).prepare()
        except CycleError as error:
            raise InvalidValueError(
                f"stages wait for one another: {' -> '.join(error.args[1])}", "Leave one of them out of after"
            ) from error
        return self


def in_order(stages: Sequence[StageConfig]) -> list[StageConfig]:
    """Stages, none before those that it waits for; else in the order of the recipe."""
    by_name = {stage.name: stage for stage in stages}
    sorter = TopologicalSorter({stage.name: stage.before for stage in stages})
    place = {stage.name: number for number, stage in enumerate(stages)}
    sorter.prepare()
    found: list[StageConfig] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=place.__getitem__)
        found += [by_name[name] for name in ready]
        sorter.done(*ready)
    return found

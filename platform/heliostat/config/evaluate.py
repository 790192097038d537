"""``kind: evaluate``: frozen features of a run's teacher, judged on a labelled dataset."""

from typing import Annotated, Literal

from pydantic import Field

from heliostat.config.base import Name, Root, Section


class KnnConfig(Section):
    """Weighted k-nearest-neighbour classification (DINOv2 paper, section 7.1)."""

    neighbours: list[Annotated[int, Field(gt=0)]] = Field([10, 20, 100, 200], min_length=1, description="values of k")
    temperature: float = Field(0.07, gt=0, description="temperature of the votes")


class EvaluateRecipe(Section):
    """Evaluate the newest committed teacher of a run beside the untrained network."""

    kind: Literal["evaluate"]
    name: Name = Field(description="name of this evaluation")
    root: Root = "heliostat-root"
    run: Name = Field(description="the run whose teacher is judged, or one of its students")
    student: Name | None = Field(None, description="of a distillation; null is its only one")
    step: int | None = Field(None, ge=0, description="of the checkpoint that is judged; null is the newest")
    bank: Name = Field(description="labelled dataset whose features vote")
    queries: Name = Field(description="labelled dataset that is classified")
    knn: KnnConfig = Field(default_factory=KnnConfig)

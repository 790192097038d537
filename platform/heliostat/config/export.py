"""``kind: export``: the trained backbone of a run as files that other programs read."""

from typing import Literal

from pydantic import Field

from heliostat.config.base import Name, Root, Section


class ExportRecipe(Section):
    """Export the teacher's backbone of a run to ``<root>/exports/<name>/``; what was written is compared."""

    kind: Literal["export"]
    name: Name = Field(description="name of this export")
    root: Root = "heliostat-root"
    run: Name = Field(description="the run whose teacher is exported, or one of its students")
    student: Name | None = Field(None, description="of a distillation; null is its only one")
    step: int | None = Field(None, ge=0, description="of the checkpoint; null is the newest")
    format: Literal["safetensors", "huggingface", "timm", "onnx", "torch-export"] = Field(
        "safetensors", description="what is written: ours, for transformers, for timm, or a graph"
    )
    px: int | None = Field(None, gt=0, description="side of the images; null is what the positions are stored for")
    dynamic_batch: bool = Field(False, description="of graphs: any number of images at a time instead of one")

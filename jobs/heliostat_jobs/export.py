"""A trained backbone as files that others read: of a run, or of any file of weights."""

from dataclasses import asdict, dataclass
from pathlib import Path

from heliostat.errors import WeightsNotFoundError
from heliostat.models.weights.download import is_official_name
from heliostat.models.weights.export import Export, Format, export_backbone
from heliostat.models.weights.load import load_backbone
from heliostat.storage import open_store
from heliostat.storage.layout import LOCK_KEY, run_store


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What is exported, how and where to."""

    source: str
    """A run's name, or what ``heliostat.load_backbone`` takes."""
    format: Format
    output: Path
    root: str
    """Where runs are looked for."""
    step: int | None = None
    """Of a run's checkpoint; None is the newest."""
    px: int | None = None
    dynamic_batch: bool = False
    overwrite: bool = False
    student: str | None = None
    """Of a distillation; None is its only one."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was exported."""

    source: str
    """Where the weights were found."""
    format: Format
    output: Path
    export: Export

    def to_json(self) -> dict[str, object]:
        """For ``--json``."""
        return {"source": self.source, "format": self.format, "output": str(self.output), **asdict(self.export)}


def export(request: ExportRequest) -> ExportResult:
    """Export the backbone of a run (its teacher) or of a file.

    Raises:
        WeightsNotFoundError: there is neither such a run nor such a file.
        HeliostatError: what ``load_backbone`` and ``export_backbone`` raise.
    """
    source = resolve(request.source, request.root)
    backbone = load_backbone(source, step=request.step, student=request.student)
    written = export_backbone(
        backbone,
        request.format,
        request.output,
        px=request.px,
        dynamic_batch=request.dynamic_batch,
        overwrite=request.overwrite,
    )
    return ExportResult(source, request.format, request.output, written)


def resolve(source: str, root: str) -> str:
    """Where weights are: a path or address as it is, a run's name below its root, a released model's name.

    Raises:
        WeightsNotFoundError: it is none of these.
    """
    if source.startswith("s3://") or Path(source).expanduser().exists():
        return source
    if "/" not in source:
        store = open_store(root)
        run = run_store(store, source)
        if run.exists(LOCK_KEY):
            return run.url
        if is_official_name(source):
            return source
    raise WeightsNotFoundError(
        f"{source!r} is neither a file of weights, nor a run under {root}, nor a released model",
        "Give a path, a run's name with --root, or a name such as dinov2_vits14",
    )

"""A pipeline for people: each stage with its state and times, as lines, and the whole as a drawn graph. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from typing import Any

from heliostat.config.pipeline import PipelineRecipe, in_order
from heliostat.observe.status import duration
from heliostat_jobs.pipelines.log import PipelineEntry, StageEnded, StageSkipped, StageStarted
from heliostat_jobs.pipelines.stages import specs_of
from heliostat_jobs.pipelines.state import Phase, fold

_MARKS: Mapping[Phase, str] = {
    Phase.WAITING: "·",
    Phase.STARTED: "▶",
    Phase.SUCCEEDED: "✓",
    Phase.SKIPPED: "↷",
    Phase.FAILED: "✗",
    Phase.CANCELLED: "■",
}
ALONE = (
    "<style>text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#626b7c}.name{font-weight:600;fill:#1f2430}"
    "rect{fill:#f5f6f8;stroke:#c8ccd4;stroke-width:1.5}.arrow{fill:none;stroke:#98a2b3;stroke-width:1.4}"
    ".head{fill:#98a2b3}.succeeded rect{stroke:#2f7d4f}.skipped rect{stroke:#2f7d4f;stroke-dasharray:4 3}"
    ".started rect{stroke:#2563a8}.failed rect{stroke:#b3261e}"
    "@media(prefers-color-scheme:dark){rect{fill:#12151b}.name{fill:#e4e7ee}text{fill:#98a2b3}}</style>"
)
"""The style of a graph that is a picture of its own."""
_BOX_WIDTH, _BOX_HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 190, 58, 60, 22, 8


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage.

    Attributes:
        name: Of it.
        kind: Of its recipe.
        job: Name of its job.
        phase: Where it is.
        tries: How often it was started.
        after: Stages that it waits for.
        took_s: Seconds of its last try, until now if that runs; none if it never began.
        why: Of its last failure.
    """

    name: str
    kind: str
    job: str
    phase: Phase
    tries: int
    after: tuple[str, ...]
    took_s: float | None
    why: str

    @property
    def line(self) -> str:
        """All of it as one line."""
        tries = f", try {self.tries}" if self.tries > 1 else ""
        took = "" if self.took_s is None else f", {duration(self.took_s)}"
        after = f" (after {', '.join(self.after)})" if self.after else ""
        why = f": {self.why}" if self.why else ""
        return f"{_MARKS[self.phase]} {self.name}: {self.phase}{tries}{took}{why}{after}"

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "phase": self.phase.value}


def stage_views(pipeline: PipelineRecipe, entries: Sequence[PipelineEntry], now_s: float) -> list[StageView]:
    """All stages, none before those that it waits for.

    Args:
        pipeline: With its stages' recipes.
        entries: Of its log.
        now_s: Seconds since 1970.
    """
    state = fold(specs_of(pipeline), entries)
    found = []
    for config in in_order(pipeline.expanded):
        stage = state.stages[config.name]
        mine = [entry for entry in entries if _is_of(entry, config.name)]
        failures = [entry for entry in mine if isinstance(entry, StageEnded) and entry.outcome == "failed"]
        is_harmed = failures and stage.phase in (Phase.WAITING, Phase.FAILED)
        why = f"{failures[-1].cause} {failures[-1].fact}".strip() if is_harmed else ""
        kind = str((config.config or {}).get("kind", ""))
        took_s = _took_s(mine, now_s)
        job = pipeline.job_name(config.name)
        found.append(StageView(config.name, kind, job, stage.phase, stage.tries, config.before, took_s, why))
    return found


def _is_of(entry: PipelineEntry, stage: str) -> bool:
    return isinstance(entry, StageStarted | StageEnded | StageSkipped) and entry.stage == stage


def _took_s(mine: Sequence[PipelineEntry], now_s: float) -> float | None:
    begins = [number for number, entry in enumerate(mine) if isinstance(entry, StageStarted)]
    if not begins:
        return None
    began_s = _seconds(mine[begins[-1]])
    end = next((entry for entry in mine[begins[-1] :] if isinstance(entry, StageEnded)), None)
    return max(0.0, (now_s if end is None else _seconds(end)) - began_s)


def _seconds(entry: PipelineEntry) -> float:
    return datetime.fromisoformat(entry.written_at).timestamp()


def graph_svg(stages: Sequence[StageView], link: Mapping[str, str], style: str = "") -> str:
    """The stages as boxes, from left to right, each with an arrow to those that wait for it.

    Args:
        stages: As ``stage_views`` orders them.
        link: Where a stage's box leads, by its name.
        style: ``ALONE`` for a picture of its own; a page has a style for it.
    """
    depth: dict[str, int] = {}
    for stage in stages:
        depth[stage.name] = 1 + max((depth[before] for before in stage.after), default=-1)
    rows: dict[int, int] = {}
    place = {}
    for stage in stages:
        column = depth[stage.name]
        row = rows.get(column, 0)
        rows[column] = row + 1
        place[stage.name] = (
            _MARGIN + column * (_BOX_WIDTH + _GAP_X),
            _MARGIN + row * (_BOX_HEIGHT + _GAP_Y),
        )
    width = 2 * _MARGIN + (1 + max(depth.values())) * (_BOX_WIDTH + _GAP_X) - _GAP_X
    height = 2 * _MARGIN + max(rows.values()) * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y
    arrows = [_arrow(place[before], place[stage.name]) for stage in stages for before in stage.after]
    boxes = [_box(stage, *place[stage.name], link.get(stage.name)) for stage in stages]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="pipeline" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="stages of the pipeline">{style}{"".join(arrows)}{"".join(boxes)}</svg>'
    )


def _arrow(begin: tuple[int, int], end: tuple[int, int]) -> str:
    x, y = begin[0] + _BOX_WIDTH, begin[1] + _BOX_HEIGHT // 2
    to_x, to_y = end[0] - 6, end[1] + _BOX_HEIGHT // 2
    middle = (x + to_x) // 2
    return (
        f'<path class="arrow" d="M{x} {y} C{middle} {y} {middle} {to_y} {to_x} {to_y}"/>'
        f'<path class="head" d="M{to_x - 3} {to_y - 4} L{to_x + 5} {to_y} L{to_x - 3} {to_y + 4} Z"/>'
    )


def _box(stage: StageView, x: int, y: int, href: str | None) -> str:
    took = "" if stage.took_s is None else f" · {duration(stage.took_s)}"
    tries = f" · try {stage.tries}" if stage.tries > 1 else ""
    box = (
        f'<g class="stage {stage.phase}"><title>{escape(stage.line)}</title>'
        f'<rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="7"/>'
        f'<text class="name" x="{x + 12}" y="{y + 24}">{escape(_shortened(stage.name))}</text>'
        f'<text x="{x + 12}" y="{y + 44}">{_MARKS[stage.phase]} {stage.phase}{tries}{took}</text></g>'
    )
    return box if href is None else f'<a href="{escape(href, quote=True)}">{box}</a>'


def _shortened(name: str, chars: int = 22) -> str:
    return name if len(name) <= chars else f"{name[: chars - 1]}…"

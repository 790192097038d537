"""A pipeline as lines and as a drawn graph."""

from xml.etree import ElementTree

from heliostat.config.pipeline import PipelineRecipe
from heliostat_jobs.pipelines.log import PipelineEntry, StageEnded, StageSkipped, StageStarted
from heliostat_jobs.pipelines.state import Phase
from heliostat_jobs.pipelines.view import StageView, graph_svg, stage_views

PIPELINE = PipelineRecipe.model_validate(
    {
        "kind": "pipeline",
        "name": "p",
        "stages": [
            {"name": "judge-{each}", "recipe": "j.yaml", "after": ["train"], "each": ["a", "<b>"]},
            {"name": "train", "recipe": "t.yaml", "after": ["curate"]},
            {"name": "curate", "recipe": "c.yaml"},
        ],
    }
)
BEGAN = "2026-01-02T03:04:05.000+00:00"
BEGAN_S = 1767323045.0


def started(stage: str, try_: int = 1, at: str = BEGAN) -> StageStarted:
    return StageStarted(attempt=1, stage=stage, try_=try_, submission_id=f"p-{stage}-{try_}", inputs="", written_at=at)


def ended(stage: str, outcome: str, cause: str = "", at: str = "2026-01-02T03:05:05.000+00:00") -> StageEnded:
    entry = {"attempt": 1, "stage": stage, "try_": 1, "outcome": outcome, "cause": cause, "fact": "it fell over"}
    return StageEnded.model_validate({**entry, "written_at": at})


def by_name(*entries: PipelineEntry, now_s: float = BEGAN_S + 90) -> dict[str, StageView]:
    return {view.name: view for view in stage_views(PIPELINE, entries, now_s)}


def test_stage_views__none_stands_before_those_that_it_waits_for() -> None:
    assert [view.name for view in stage_views(PIPELINE, [], 0.0)] == ["curate", "train", "judge-a", "judge-<b>"]


def test_stage_views__tell_states_times_tries_and_why() -> None:
    skipped = StageSkipped(attempt=1, stage="curate", artifacts={})
    views = by_name(skipped, started("train"), ended("train", "failed", "HS-RUN-003"), started("train", 2))
    assert views["curate"].line == "↷ curate: skipped"
    assert views["train"].line == "▶ train: started, try 2, 1:30 min (after curate)"
    assert views["judge-a"].line == "· judge-a: waiting (after train)"
    views = by_name(started("curate"), ended("curate", "failed", "HS-CONF-004"))
    assert views["curate"].line == "✗ curate: failed, 1:00 min: HS-CONF-004 it fell over"
    assert by_name(started("curate"), ended("curate", "succeeded"))["curate"].phase is Phase.SUCCEEDED


def test_graph_svg__has_every_stage_once_and_an_arrow_for_each_that_waits() -> None:
    views = stage_views(PIPELINE, [started("curate")], BEGAN_S + 5)
    text = graph_svg(views, {"curate": 'x.html?a=1&b="2"'})
    drawn = ElementTree.fromstring(text.replace(' xmlns="http://www.w3.org/2000/svg"', ""))
    names = [text.text for text in drawn.iter("text") if text.get("class") == "name"]
    assert sorted(filter(None, names)) == ["curate", "judge-<b>", "judge-a", "train"]
    assert len([path for path in drawn.iter("path") if path.get("class") == "arrow"]) == 3
    (link,) = drawn.iter("a")
    assert link.get("href") == 'x.html?a=1&b="2"'
    boxes = [(rect.get("x"), rect.get("y")) for rect in drawn.iter("rect")]
    assert len(set(boxes)) == 4

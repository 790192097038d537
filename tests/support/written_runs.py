"""A run's directory as a run leaves it: a lock, events and metrics of a simulated run."""

import json
from datetime import datetime

from support.simulated_runs import simulated_run
from support.worlds import tiny_recipe

from heliostat.config import ResolvedRecipe, lock
from heliostat.observe.events import Event
from heliostat.observe.metrics import StepMetrics
from heliostat.observe.segments import encode_line
from heliostat.storage import Store
from heliostat.storage.layout import LOCK_KEY, run_store


def write_run(root: Store, name: str, seed: int = 3, *more: Event) -> int:
    """Write one; the number of its interruptions."""
    run, store = simulated_run(seed), run_store(root, name)
    recipe = tiny_recipe(steps=400).model_copy(update={"name": name, "root": root.url})
    locked = lock(ResolvedRecipe(recipe, _Everything(), ""))
    store.create(LOCK_KEY, json.dumps({**locked, "manifests": {"tiny": "0" * 64}}).encode())
    events = [*run.events, *more]
    store.put("events/0001/00000000.jsonl", b"".join(encode_line(event.to_line()) for event in events))
    lines = [_line(each) for each in run.lines]
    store.put("metrics/0001/00000000.jsonl", b"".join(encode_line(line) for line in lines))
    return sum(event.type == "interrupted" for event in events)


class _Everything(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "test"


def _line(each: StepMetrics) -> dict[str, object]:
    ends = datetime.fromisoformat(each.time_utc).timestamp()
    loss = 9.0 / (1 + each.step)
    values = {"loss": loss, "images_per_s": 100.0 + ends % 7, "knn_top1": 0.5} if each.step % 5 == 0 else {"loss": loss}
    return {"time_utc": each.time_utc, "attempt": each.attempt, "step": each.step, **values, **each.seconds}

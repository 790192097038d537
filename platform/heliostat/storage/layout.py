"""What lies where below a root: one folder for each kind of thing, one below it for each name."""

from heliostat.storage.store import Store

LOCK_KEY = "config.lock.json"
"""Of whatever has a recipe: how it was resolved when it was first started."""
RESULT_KEY = "result.json"
"""Of a curation or an evaluation that is finished: what it found."""


RUNS, CURATIONS, EVALUATIONS, EXPORTS = "runs/", "curations/", "evaluations/", "exports/"
PIPELINES = "pipelines/"
"""Folders of the root that hold one folder for each job of a kind."""


def dataset_store(root: Store, name: str) -> Store:
    """The part of a root that belongs to one dataset; keys of shards are relative to it."""
    return root.sub(f"datasets/{name}")


def run_store(root: Store, name: str) -> Store:
    """The part of a root that belongs to one run."""
    return root.sub(f"{RUNS}{name}")


def curation_store(root: Store, name: str) -> Store:
    """The part of a root that belongs to one curation."""
    return root.sub(f"{CURATIONS}{name}")


def pipeline_store(root: Store, name: str) -> Store:
    """The part of a root that belongs to one pipeline."""
    return root.sub(f"{PIPELINES}{name}")

"""What lies where below a root: one folder for each kind of thing, one below it for each name."""

from heliostat.storage.store import Store

LOCK_KEY = "config.lock.json"
"""Of whatever has a recipe: how it was resolved when it was first started."""
RESULT_KEY = "result.json"
"""Of a curation or an evaluation that is finished: what it found."""


def dataset_store(root: Store, name: str) -> Store:
    """The part of a root that belongs to one dataset; keys of shards are relative to it."""
    return root.sub(f"datasets/{name}")


def run_store(root: Store, name: str) -> Store:
    """The part of a root that belongs to one run."""
    return root.sub(f"runs/{name}")


def curation_store(root: Store, name: str) -> Store:
    """The part of a root that belongs to one curation."""
    return root.sub(f"curations/{name}")


def evaluation_store(root: Store, name: str) -> Store:
    """The part of a root that belongs to one evaluation."""
    return root.sub(f"evaluations/{name}")


def pipeline_store(root: Store, name: str) -> Store:
    """The part of a root that belongs to one pipeline."""
    return root.sub(f"pipelines/{name}")

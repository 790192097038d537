"""``kind: curate``: find or create the curation, carry it out with a live view."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

from heliostat.config import ResolvedRecipe
from heliostat.config.curate import CurateRecipe
from heliostat.curation.context import Watch
from heliostat.curation.curate import Curated, Pinned, Stopped, load_result, pin
from heliostat.curation.curate import curate as carry_out
from heliostat.data.ray_tasks import run_tasks
from heliostat.errors import UnknownImageError
from heliostat.observe.progress import ItemProgress, watch_items
from heliostat.storage import Store, open_store
from heliostat.storage.layout import curation_store
from heliostat_cluster.local import joined_ray, local_ray
from heliostat_jobs.curation_report import curation_report
from heliostat_jobs.locks import find_or_create_lock, locked_recipe

REPORT_KEY = "report.html"


@dataclass(frozen=True, slots=True)
class CurateResult:
    """How a curation ended."""

    name: str
    root: str
    curated: Curated
    was_finished: bool

    @property
    def report(self) -> str:
        """Where the report is."""
        return f"{curation_store(open_store(self.root), self.name).url}/{REPORT_KEY}"

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return {
            "curation": self.name,
            "root": self.root,
            "finished": True,
            "was_finished": self.was_finished,
            "report": self.report,
            **self.curated.to_json(),
        }

    def summary(self) -> list[str]:
        """What happened, line by line."""
        curated = self.curated
        lines = [f"{self.name}: {curated.images:,} images, from a pool of {curated.pool:,}"]
        lines += [
            f"  {'+' if kept else '-'} {images:,} {reason} ({stage})"
            for (stage, reason, kept), images in curated.reasons.items()
            if images
        ]
        if self.was_finished:
            lines.append("was finished already")
        return [*lines, f"report: {self.report}", f"dataset: {self.root}/{self.name} ({curated.manifest_sha256[:16]})"]


@dataclass(frozen=True, slots=True)
class StoppedCuration:
    """A curation that went as far as ``until`` says."""

    name: str
    root: str
    stopped: Stopped

    def to_json(self) -> dict[str, object]:
        """All of it."""
        return {"curation": self.name, "root": self.root, "finished": False, **asdict(self.stopped)}

    def summary(self) -> list[str]:
        """What happened, line by line."""
        records = self.stopped.records
        lines = [
            f"  {each.name}: {each.before:,} images, {each.after:,} left, {each.seconds:.0f} s" for each in records
        ]
        return [f"{self.name}: stopped after {self.stopped.until}", *lines, "next: the same without until goes on"]


def curate(resolved: ResolvedRecipe, *, address: str | None = None) -> CurateResult | StoppedCuration:
    """Carry out a curation as far as it says, or go on with one, on an embedded Ray or on a cluster.

    Args:
        resolved: The recipe.
        address: Of the Ray cluster that this machine belongs to; None starts a Ray of its own.

    Raises:
        ChangedConfigError: a curation of this name has another configuration.
        DatasetNotFoundError: a dataset of the recipe is not there.
        HeliostatError: see ``heliostat.curation.curate.curate``.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, CurateRecipe)  # noqa: S101 -- callers dispatch on the kind
    root = open_store(recipe.root)
    store = curation_store(root, recipe.name)
    locked = find_or_create_lock(store, resolved, lambda: asdict(pin(root, recipe)))
    pinned = Pinned(locked["manifests"], locked["inputs"])
    curated = load_result(root, recipe.name)
    was_finished = curated is not None
    if curated is None:
        ray = local_ray(num_cpus=os.cpu_count() or 1) if address is None else joined_ray(address)
        with ray, _show() as watch:
            found = carry_out(root, recipe, pinned, run_tasks, watch)
        if isinstance(found, Stopped):
            return StoppedCuration(recipe.name, recipe.root, found)
        curated = found
    if not store.exists(REPORT_KEY):  # an earlier start may have ended just before it
        curation_report(root, recipe, pinned.manifests, curated).write(store, REPORT_KEY)
    return CurateResult(recipe.name, recipe.root, curated, was_finished)


def load_curation(root: Store, name: str) -> tuple[CurateRecipe, Curated]:
    """The recipe of a finished curation as it was resolved, and what it made.

    Raises:
        UnknownImageError: there is no such curation, or it is not finished.
        CorruptLockError: its lock is damaged.
    """
    curated = load_result(root, name)
    recipe = None if curated is None else locked_recipe(curation_store(root, name))
    if curated is None or not isinstance(recipe, CurateRecipe):
        raise UnknownImageError(
            f"there is no finished curation {name!r} under {root.url}",
            "Check the name, or finish it with heliostat run RECIPE.yaml",
        )
    return recipe.model_copy(update={"root": root.url}), curated


@contextmanager
def _show() -> Iterator[Watch]:
    """A view of each stage, one after the other."""
    views: dict[str, ItemProgress] = {}
    with ExitStack() as open_view:

        def watch(stage: str, done: int, total: int) -> None:
            if stage not in views:
                open_view.close()
                views.clear()
                views[stage] = open_view.enter_context(watch_items(stage, total))
            views[stage].update(done, total=total)

        yield watch

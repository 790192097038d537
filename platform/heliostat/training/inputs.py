"""What a run reads: its pinned datasets, as a stream of samples for a worker, and what that will cost."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from heliostat.config.distill import DistillRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.data.cache import ShardCache
from heliostat.data.manifest import load_manifest
from heliostat.data.read_plan import read_advice
from heliostat.data.samples import PinnedDataset, Samples, SampleSource, WorkerShare
from heliostat.data.selection import predict_selection
from heliostat.data.stream import stream_samples
from heliostat.data.teacher_views import ViewFolder
from heliostat.storage import Store
from heliostat.training.feed import StreamFrom


def sample_source(
    recipe: TrainingRecipe,
    root: Store,
    manifests: Mapping[str, str],
    workers: int = 1,
    views: ViewFolder | None = None,
) -> SampleSource:
    """The datasets of a run, by the hashes of the manifests that it has pinned.

    Args:
        recipe: Of the run.
        root: That holds the datasets.
        manifests: Hashes by name of the dataset.
        workers: That read side by side.
        views: Where what the run's teacher says of each image is kept.
    """
    streaming = recipe.streaming
    cache = ShardCache(Path(streaming.cache_dir), int(streaming.cache_gib * 2**30)) if streaming.cache_dir else None
    pinned = tuple(PinnedDataset(name, manifests[name], share) for name, share in recipe.dataset.shares.items())
    patient = root.patient(streaming.patience_s)
    labelled = isinstance(recipe, DistillRecipe) and recipe.objective.labels.weight > 0
    return SampleSource(patient, pinned, recipe.seed, recipe.dataset.window_groups, cache, workers, views, labelled)


def _stream_from(source: SampleSource, share: WorkerShare, steps: int, first_step: int) -> Iterator[Samples]:
    return stream_samples(source, share, first_step, steps)


def sample_stream(source: SampleSource, share: WorkerShare, steps: int) -> StreamFrom:
    """A worker's samples from any step on, through Ray Data."""
    return partial(_stream_from, source, share, steps)


def amplified_reads(root: Store, manifests: Mapping[str, str]) -> Iterator[tuple[str, float, str]]:
    """Datasets of which much more bytes are read than used: name, how many times more, and advice."""
    for name, sha256 in manifests.items():
        times = predict_selection(root, load_manifest(root, name, sha256))
        if advice := read_advice(name, times):
            yield name, round(times, 1), advice

"""What a frozen teacher says of each image, computed once and kept: students then need no pass of the teacher.

That is possible where crops do not change (``augmentation.fixed``). What is kept are bottleneck vectors, whose size
does not depend on the number of prototypes; the last layers of the heads, and centring, are computed with each step.
They lie under ``teacher_views/<fingerprint>``, and the fingerprint is of all that they depend on: another teacher, seed
or augmentation never reads them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import pyarrow as pa
import torch

from heliostat.config.distill import DistillRecipe
from heliostat.config.training import TrainingRecipe
from heliostat.data.crop_plan import GLOBAL_CROPS
from heliostat.data.manifest import load_manifest
from heliostat.data.ray_tasks import ActorPool, Task
from heliostat.data.reading import RowReader
from heliostat.data.samples import Samples
from heliostat.data.teacher_views import VIEW, ViewFolder, first_rows, group_name
from heliostat.objectives.distillation import shown_to
from heliostat.objectives.engine import autocast
from heliostat.objectives.kept_views import kept_dtype, kept_numbers, pack
from heliostat.objectives.networks import Network, widths_of
from heliostat.storage import Store
from heliostat.storage.results import ResultFolder
from heliostat.training.feed import prepare_slot, slot_batch
from heliostat.training.students import StartingPoint

_FORMAT = 2
_FOLDER = "teacher_views"
_FINGERPRINT_CHARS = 16

Report = Callable[[int, int], None]
"""Told how many images of how many are done."""
Run = Callable[[Iterator[tuple[int, bytes]], Task | ActorPool], Iterator[tuple[int, bytes]]]
"""As ``heliostat.data.ray_tasks.run_tasks``."""


def view_folder(recipe: TrainingRecipe, root: Store, start: StartingPoint | None, device: str) -> ViewFolder | None:
    """Where a run's teacher's views are kept; None where they are not.

    Args:
        recipe: Of the run.
        root: That holds the run.
        start: The teacher.
        device: Where the run computes, cpu or cuda: colours are changed there, and not to the same levels.
    """
    if not isinstance(recipe, DistillRecipe) or not recipe.teacher.cache or start is None:
        return None
    shown = shown_to(recipe)
    depends_on = {
        "format": _FORMAT,
        "teacher": start.fingerprint,
        "seed": recipe.seed,
        "augmentation": recipe.augmentation.model_dump(mode="json"),
        "precision": recipe.training.precision,
        "device": device,
        "shown": asdict(shown),
    }
    fingerprint = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:_FINGERPRINT_CHARS]
    numbers = kept_numbers(recipe, shown, widths_of(start.as_teacher(recipe)))
    row_bytes = GLOBAL_CROPS * numbers * kept_dtype(recipe).itemsize
    return ViewFolder(root.sub(f"{_FOLDER}/{fingerprint}/"), row_bytes)


@dataclass(frozen=True, slots=True)
class _ViewGroups:
    """Makes the task of a process: the views of one row group, written; picklable."""

    recipe: DistillRecipe
    root: Store
    manifests: Mapping[str, str]
    start: StartingPoint
    folder: ViewFolder
    device: str

    def __call__(self) -> Task:
        device = torch.device(self.device)
        (network,) = self.start.load(self.root, self.recipe)
        network.shown = shown_to(self.recipe)
        network.to(device).requires_grad_(False).eval()
        manifests = {name: load_manifest(self.root, name, sha256) for name, sha256 in self.manifests.items()}
        readers = {name: RowReader(self.root, manifest) for name, manifest in manifests.items()}
        starts = {name: first_rows(manifest) for name, manifest in manifests.items()}
        results = ResultFolder(self.folder.store)

        def task(payload: bytes) -> bytes:
            name, group = json.loads(payload)
            if results.has(group_name(manifests[name].sha256, group)):  # another run has written it meanwhile
                return payload
            first, last = starts[name][group : group + 2]
            images = readers[name].read(range(first, last))
            samples = Samples([0] * (last - first), images["id"].to_pylist(), images["image"].to_pylist())
            views = [view for part in self._parts(samples) for view in self._views(network, part, device)]
            column = pa.array(views, pa.binary(self.folder.row_bytes))
            results.write(group_name(manifests[name].sha256, group), pa.table({"id": images["id"], VIEW: column}))
            return payload

        return task

    def _parts(self, samples: Samples) -> Iterator[Samples]:
        size = self.recipe.training.slot_batch
        return (samples.part(start, start + size) for start in range(0, len(samples.ids), size))

    @torch.no_grad()
    def _views(self, network: Network, part: Samples, device: torch.device) -> list[bytes]:
        slot = slot_batch(prepare_slot(self.recipe, 0, 0, part, photometric=device.type == "cpu"), device)
        with autocast(self.recipe.training, device):
            view = network.view(slot)
        return [each.tobytes() for each in pack(view, kept_dtype(self.recipe))]


def keep_views(
    recipe: DistillRecipe,
    root: Store,
    manifests: Mapping[str, str],
    start: StartingPoint,
    *,
    run: Run,
    device: str,
    report: Report = lambda done, total: None,
) -> None:
    """Have the teacher look at every image whose view is not kept yet; what is kept stays if this is killed.

    Args:
        recipe: Of the run.
        root: That holds the run.
        manifests: Hashes of the datasets that the run has pinned, by name.
        start: The teacher.
        run: How tasks are run.
        device: Where the teacher computes: cpu or cuda.
        report: Told how far it is.

    Raises:
        CorruptShardError, CorruptCheckpointError: bytes are not those that were written.
        StorageError: the store does not cooperate.
    """
    folder = view_folder(recipe, root, start, device)
    assert folder is not None  # noqa: S101 -- whoever calls has looked
    kept = ResultFolder(folder.store).found()
    rows: list[int] = []
    payloads: list[bytes] = []
    done = 0
    for name, sha256 in manifests.items():
        manifest = load_manifest(root, name, sha256)
        for group, size in enumerate(manifest.group_rows):
            if group_name(sha256, group) in kept:
                done += size
            else:
                rows.append(size)
                payloads.append(json.dumps([name, group]).encode())
    total = done + sum(rows)
    report(done, total)
    make = _ViewGroups(recipe, root, manifests, start, folder, device)
    for index, _ in run(enumerate(payloads), ActorPool(make, gpus=float(device == "cuda"))):
        done += rows[index]
        report(done, total)

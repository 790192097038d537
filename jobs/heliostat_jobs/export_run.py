"""``kind: export``: a run's backbone into the store, checked before it is kept."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heliostat.config import ResolvedRecipe
from heliostat.config.export import ExportRecipe
from heliostat.storage import open_store
from heliostat.storage.layout import EXPORTS, RESULT_KEY, run_store
from heliostat_jobs.export import ExportRequest, export
from heliostat_jobs.locks import find_or_create_lock


@dataclass(frozen=True, slots=True)
class ExportedRun:
    """What was exported, and where it lies."""

    name: str
    place: str
    told: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {"name": self.name, "place": self.place, **self.told}

    def summary(self) -> list[str]:
        """The files, line by line."""
        files = self.told["files"]
        lines = [f"{file['name']}  {file['size_bytes']:,} bytes  sha256 {file['sha256']}" for file in files]
        return [f"{self.name}: exported to {self.place}", *lines]


def export_run(resolved: ResolvedRecipe) -> ExportedRun:
    """Export the teacher of a run; what was exported before is found again.

    Raises:
        ChangedConfigError: an export of this name has another configuration.
        HeliostatError: what ``heliostat_jobs.export.export`` and the store raise.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, ExportRecipe)  # noqa: S101 -- callers dispatch on the kind
    root = open_store(recipe.root)
    place = root.sub(f"{EXPORTS}{recipe.name}")
    find_or_create_lock(place, resolved, lambda: {"manifests": {}})
    if not place.exists(RESULT_KEY):
        with tempfile.TemporaryDirectory(prefix="heliostat-export-") as folder:
            source, target = run_store(root, recipe.run).url, Path(folder)
            wanted = ExportRequest(
                source,
                recipe.format,
                target,
                root.url,
                recipe.step,
                recipe.px,
                recipe.dynamic_batch,
                student=recipe.student,
            )
            made = export(wanted).export
            for file in made.files:
                place.upload(f"files/{file.name}", target / file.name)
        told = {"run": recipe.run, "step": recipe.step, "format": recipe.format, **asdict(made)}
        place.put(RESULT_KEY, json.dumps(told).encode())  # last: who finds it finds the files too
    return ExportedRun(recipe.name, place.url, json.loads(place.get(RESULT_KEY)))

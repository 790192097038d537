"""A source of a few files per unit, so that small tests have many tasks; with or without places to read again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from heliostat.config.base import Section
from heliostat.data.images import DEFAULT_LIMITS, ImageLimits
from heliostat.data.sources import FilePlace, Item, RefusedItem, Source, Unit


class _Spec(Section):
    names: tuple[str, ...]
    stamps: tuple[int, ...]


@dataclass(frozen=True)
class PlainSource(Source):
    """All files below a folder; the first folder level is the label."""

    folder: str
    per_unit: int = 4
    has_places: bool = True

    @property
    def description(self) -> str:
        return self.folder

    def units(self) -> Iterator[Unit]:
        paths = sorted(path for path in Path(self.folder).rglob("*") if path.is_file())
        for index, start in enumerate(range(0, len(paths), self.per_unit)):
            some = paths[start : start + self.per_unit]
            names = tuple(str(path.relative_to(self.folder)) for path in some)
            spec = _Spec(names=names, stamps=tuple(path.stat().st_mtime_ns for path in some))
            yield Unit.of(index, spec, len(names))

    def read(self, unit: Unit, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[Item | RefusedItem]:
        for name in _Spec.model_validate_json(unit.spec).names:
            path = Path(self.folder) / name
            data = path.read_bytes()
            place = FilePlace(path=bytes(path), size=len(data)) if self.has_places else None
            yield Item(name, name.split("/")[0] if "/" in name else None, data, place)

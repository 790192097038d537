"""The stage ``filter``: what cannot be used, whatever it shows; lists of what may or must not be used; plug-ins."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from heliostat.curation.context import Context
from heliostat.curation.dedup import Bools
from heliostat.curation.embeddings import open_image_map
from heliostat.curation.image_maps import SOURCE, MapResults, map_images
from heliostat.curation.kmeans import Floats
from heliostat.curation.quality import DEVIATION, ENTROPY, REASONS, SHARPNESS, Measures, Quality, refused
from heliostat.errors import ChangedConfigError, InvalidValueError, SourceNotFoundError

SCORE = "score"
STAGE = "filter"


def apply_filter(context: Context, inputs: Mapping[str, str]) -> Floats:
    """Leave out what the recipe's filter refuses; the sharpness of every image, (rows,).

    Args:
        context: Of the curation.
        inputs: Hashes of the lists.

    Raises:
        ChangedConfigError: a list has another hash by now.
    """
    config = context.recipe.filter
    with context.stage(STAGE) as details:
        wanted = context.fates.alive
        results = map_images(
            context.universe, Quality(), all_usable, wanted, context.run, partial(context.watch, STAGE)
        )
        names = (SHARPNESS, ENTROPY, DEVIATION)
        columns = dict(zip(names, _columns(context, results, wanted, names), strict=True))
        rows = np.flatnonzero(wanted & ~np.isnan(columns[SHARPNESS]))
        context.fates.drop(STAGE, "unreadable", np.flatnonzero(wanted & np.isnan(columns[SHARPNESS])))
        measures = Measures(
            context.listing.widths[rows], context.listing.heights[rows], *(column[rows] for column in columns.values())
        )
        codes = refused(measures, config)
        for code, reason in enumerate(REASONS):
            context.fates.drop(STAGE, reason, rows[codes == code])
        if config.deny is not None:
            listed = _listed(context, results, wanted, config.deny, inputs.get("filter.deny"))
            context.fates.drop(STAGE, "on the deny list", np.flatnonzero(listed))
        if config.allow is not None:
            listed = _listed(context, results, wanted, config.allow, inputs.get("filter.allow"))
            context.fates.drop(STAGE, "not on the allow list", np.flatnonzero(wanted & ~listed))
        for source in config.plugins:
            _apply_plugin(context, source, config.max_score)
        details["plugins"] = list(config.plugins)
    return np.nan_to_num(columns[SHARPNESS], nan=0.0)


def _apply_plugin(context: Context, source: str, max_score: float) -> None:
    function = open_image_map(source)
    wanted = context.fates.alive
    results = map_images(
        context.universe,
        function,
        usable_scores,
        wanted,
        context.run,
        partial(context.watch, f"{STAGE}: {function.name}"),
    )
    (scores,) = _columns(context, results, wanted, [SCORE])
    context.fates.drop(STAGE, f"{function.name} gave no score", np.flatnonzero(wanted & np.isnan(scores)))
    context.fates.drop(STAGE, f"{function.name} above {max_score:g}", np.flatnonzero(wanted & (scores > max_score)))


def all_usable(table: pa.Table) -> Bools:
    """Whatever was measured."""
    return np.ones(len(table), np.bool_)


def usable_scores(table: pa.Table) -> Bools:
    """Which rows have a score.

    Raises:
        ValueError: there is no such column of numbers.
    """
    kind = table.schema.field(SCORE).type if SCORE in table.column_names else pa.null()
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise ValueError(f"it gave no column {SCORE!r} of numbers")
    usable: Bools = ~np.isnan(table[SCORE].cast(pa.float64()).to_numpy())
    return usable


def _columns(context: Context, results: MapResults, wanted: Bools, names: Sequence[str]) -> list[Floats]:
    """Columns of numbers of the wanted rows, (rows,) each; NaN elsewhere, and where an image could not be read."""
    found = [np.full(context.universe.rows, np.nan, np.float32) for _ in names]
    for number, shard in enumerate(context.universe.shards):
        here = slice(shard.first, shard.first + shard.rows)
        if not wanted[here].any():
            continue
        table = results.table(number)
        for column, name in zip(found, names, strict=True):
            if name in table.column_names:  # a shard without any good image knows only its problems
                column[here] = table[name].cast(pa.float32()).to_numpy()
    return found


def _listed(context: Context, results: MapResults, wanted: Bools, path: str, sha256: str | None) -> Bools:
    """Which rows have an id or a source that stands in a file."""
    names = _read_list(path, sha256)
    ids = np.array([bytes.fromhex(name) for name in names if re.fullmatch("[0-9a-f]{64}", name)], "S32")
    sources = pa.array(names, pa.string())
    found: Bools = np.isin(np.ascontiguousarray(context.listing.ids).view("S32"), ids)
    for number, shard in enumerate(context.universe.shards):
        here = slice(shard.first, shard.first + shard.rows)
        if wanted[here].any():
            found[here] |= pc.is_in(results.table(number, [SOURCE])[SOURCE], sources).to_numpy()
    return found


def sha256_of_list(path: str) -> str:
    """Of a file with ids or sources.

    Raises:
        SourceNotFoundError, InvalidValueError: it is not there, or cannot be read.
    """
    return hashlib.sha256(_list_bytes(path)).hexdigest()


def _list_bytes(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"the list {path!r} is not there", "Correct the path") from error
    except OSError as error:
        raise InvalidValueError(f"the list {path!r} cannot be read: {error.strerror}", "Correct its rights") from error


def _read_list(path: str, sha256: str | None) -> list[str]:
    data = _list_bytes(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ChangedConfigError(
            f"the list {path!r} is not what it was when the curation was first started",
            "Put it back as it was, or give the curation another name",
        )
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidValueError(
            f"the list {path!r} is no UTF-8 text", "Give a text file, one id or source per line"
        ) from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

"""A curation that is killed again and again, on storage that fails one request in fifty, ends like a calm one.

Each kill takes the driver, its Ray and all workers at once, some seconds later than the one before. What was computed
stays computed: how many results were written twice is told.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from faults.frame import Outcome
from faults.rig import Rig, images
from support.fault_proxy import weather
from support.processes import end_session
from support.projects import command
from support.seaweedfs import s3_environment
from support.small_datasets import store_dataset

from heliostat.storage import Store, open_store

_IMAGES, _BENCHMARK = 600, 20
_STARTS = 4
_FIRST_S, _APART_S = 6.0, 4.0
_LIMIT_S = 300.0


def inject(rig: Rig) -> list[Outcome]:
    """Calm, then killed; both of the same images."""
    calm, harmed = (open_store(f"{rig.root_url}/{name}") for name in ("calm-curation", "killed-curation"))
    for root in (calm, harmed):
        store_dataset(root, images(_IMAGES), "crawl", group_rows=16, shard_groups=2)
        store_dataset(root, images(_BENCHMARK), "test")
    with _started(rig, calm) as process:
        if process.wait(_LIMIT_S):
            raise AssertionError(f"the calm curation ended with {process.returncode}")
    rig.proxy.plan(chances=weather(seed=rig.rng.randrange(2**31), share=0.02))
    began, killed = time.time(), 0
    for start in range(_STARTS):
        with _started(rig, harmed) as process:
            try:
                process.wait(_FIRST_S + _APART_S * start)
            except subprocess.TimeoutExpired:
                killed += 1  # by the end of the block
    with _started(rig, harmed) as process:
        ended = process.wait(_LIMIT_S)
    took_s = time.time() - began
    rig.proxy.plan()
    is_exact = not ended and _results(calm) == _results(harmed)
    written = [each.head.split()[1] for each in rig.proxy.requests if each.method == "PUT" and not each.fault]
    written = [path for path in written if "/killed-curation/" in path and path.endswith(".parquet")]
    again = len(written) - len(set(written))
    note = f"{killed} starts killed, {again} of {len(set(written))} results written twice, {took_s:.0f} s in all"
    # A worker may have been writing when it was killed, as many at once as there are.
    bounded = killed > 0 and again <= killed * (os.cpu_count() or 1)
    return [Outcome("curation killed, bad wire", survived=bounded and is_exact, is_exact=is_exact, note=note)]


def _results(root: Store) -> set[str]:
    """Keys of all that was computed and decided: they hold the hashes of the content."""
    return {info.key for info in root.list() if info.key.endswith((".parquet", ".faiss")) or "manifests/" in info.key}


@contextmanager
def _started(rig: Rig, root: Store) -> Iterator["subprocess.Popen[bytes]"]:
    recipe = Path(rig.folder, "curation.yaml")
    content = {
        "kind": "curate",
        "name": "best",
        "root": root.url,
        "pool": ["crawl"],
        "filter": {"min_side_px": 1},
        "dedup": {"benchmarks": ["test"]},
        "search": {"flat_rows": 100},
        "embedding": {"source": "copy"},
        "cluster": {"levels": [{"clusters": 30, "resamplings": 2}, {"clusters": 5, "resamplings": 1}]},
        "sample": 200,
    }
    recipe.write_text(yaml.safe_dump(content))
    with (
        Path(rig.folder, "curation.log").open("a") as log,
        subprocess.Popen(
            command("run", str(recipe), "--json"),
            env={**os.environ, **s3_environment(rig.proxy.endpoint)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            end_session(process.pid)

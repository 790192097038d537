"""The chunks of a stream as a source of Ray Data: every task brings some consecutive ones, a table each, in order.

A source of our own and not ``range`` with a function mapped over it, because that would be two operators. The first one
then runs thousands of tiny tasks of a whole CPU each beside the second, and while it does, Ray Data starts no task for
a consumer that waits, if what is on its way has used up the memory for it: a stream stood still for minutes.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

_UNKNOWN = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)


class ChunkTasks(Datasource):  # type: ignore[misc]  # Ray is not typed
    """Chunks 0 to ``chunks``; ``fetch`` brings one."""

    def __init__(self, chunks: int, fetch: Callable[[int], pa.Table]) -> None:
        super().__init__()
        self._chunks = chunks
        self._fetch = fetch

    def estimate_inmemory_data_size(self) -> int | None:
        """Ray's question; it only asks in order to choose the number of tasks, which we do."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: object = None
    ) -> list[ReadTask]:
        """``parallelism`` tasks."""
        fetch = self._fetch
        parts = np.array_split(np.arange(self._chunks), parallelism)
        return [ReadTask(lambda part=part: _bring(fetch, part.tolist()), _UNKNOWN) for part in parts]


def _bring(fetch: Callable[[int], pa.Table], chunks: Iterable[int]) -> Iterator[pa.Table]:
    yield from map(fetch, chunks)

"""Ray Data carries the encoded images of a worker's slots to it, in the exact order of the run.

Every worker has a pipeline of its own: a list of chunks (consecutive steps), each fetched by one Ray task that computes
by arithmetic which rows it needs, reads them verified, and returns them in order. One execution spans all epochs to the
end of the run. Because an execution takes seconds to start, the chunks of the first window are read directly meanwhile:
the first batch of a resumed run waits for storage, not for Ray Data. Nothing is coordinated between workers, so nothing
has to be when their number changes: the state of the stream is the step.

Ray Data's own ``streaming_split`` cannot be used: it hands out blocks as they come, so which worker gets which sample
depends on timing, and it restarts at sample 0 with every worker group.
"""

import json
import math
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from heliostat import errors
from heliostat.data.samples import Samples, SampleSource, WorkerShare
from heliostat.data.teacher_views import VIEW
from heliostat.errors import HeliostatError, SampleOrderError

CHUNK_SAMPLES = 512
CHUNK_BYTES = 16 * 2**20
"""Of encoded images: what one task brings to one worker at most, unless a single step is more."""
_MAX_BLOCKS = 2000
_TASK_CPUS = 0.25
"""Fetching waits for storage most of the time. Whole CPUs would starve the workers, or be starved by them for ever (a
deadlock was seen with actors that held all CPUs)."""
_TASKS_AT_ONCE = 2
_CHUNKS_AHEAD = 8
"""As many wait for a worker in Ray's memory, in bytes. Without a bound Ray Data fills half of it for every worker."""
_FAILED = -1
"""Position of a row that holds an error."""


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """The steps of a stream, cut into what is fetched at once."""

    first_step: int
    last_step: int
    """The first step that is no part of it."""
    steps_per_chunk: int
    direct: int
    """Chunks at the start that are read without Ray Data."""
    chunk_bytes: int
    """At least those of a chunk."""

    @property
    def chunks(self) -> int:
        """All of them."""
        return math.ceil((self.last_step - self.first_step) / self.steps_per_chunk)

    def steps(self, chunk: int) -> range:
        """The steps of a chunk."""
        start = self.first_step + chunk * self.steps_per_chunk
        return range(start, min(start + self.steps_per_chunk, self.last_step))


def plan_chunks(share: WorkerShare, image_bytes: float, window_rows: int, first_step: int, steps: int) -> ChunkPlan:
    """Cut the steps from ``first_step`` to ``steps``.

    Args:
        share: The worker's part of each step.
        image_bytes: Mean size of an encoded image.
        window_rows: Rows that are shuffled together: as many are read directly.
        first_step: The first step to stream.
        steps: Steps of the run.
    """
    samples = share.samples_per_step
    most = min(CHUNK_SAMPLES, CHUNK_BYTES / max(image_bytes, 1))
    steps_per_chunk = max(1, int(most // samples))
    window_steps = math.ceil(window_rows / share.global_batch)
    chunk_bytes = max(CHUNK_BYTES, math.ceil(steps_per_chunk * samples * image_bytes))
    return ChunkPlan(first_step, steps, steps_per_chunk, math.ceil(window_steps / steps_per_chunk), chunk_bytes)


def stream_samples(source: SampleSource, share: WorkerShare, first_step: int, steps: int) -> Generator[Samples]:
    """The worker's samples of each step from ``first_step`` to ``steps``; needs an initialised Ray.

    Raises:
        CorruptShardError, StorageError: as ``SampleSource.read``.
        SampleOrderError: Ray Data brought something else than was asked for.
    """
    if first_step >= steps:
        return
    plan = plan_chunks(share, source.image_bytes, source.order.window_rows, first_step, steps)
    read = _reader(source, share, plan)
    with (
        closing(_through_ray(read, plan, share)) as streamed,
        ThreadPoolExecutor(1, thread_name_prefix="stream") as threads,
    ):
        first_streamed = threads.submit(next, streamed, None)
        yield from _read_directly(read, plan, share, min(plan.direct, plan.chunks))
        after = plan.first_step + plan.direct * plan.steps_per_chunk
        if (table := first_streamed.result()) is not None:
            yield _samples(table, share, after)
        for step, table in enumerate(streamed, after + 1):
            yield _samples(table, share, step)


def direct_samples(source: SampleSource, share: WorkerShare, first_step: int, steps: int) -> Generator[Samples]:
    """The same without Ray, read by this process: see ``stream_samples``."""
    if first_step < steps:
        plan = plan_chunks(share, source.image_bytes, source.order.window_rows, first_step, steps)
        yield from _read_directly(_reader(source, share, plan), plan, share, plan.chunks)


def _reader(source: SampleSource, share: WorkerShare, plan: ChunkPlan) -> Callable[[int], pa.Table]:
    def read(chunk: int) -> pa.Table:
        return source.read([position for step in plan.steps(chunk) for position in share.positions(step)])

    return read


def _read_directly(
    read: Callable[[int], pa.Table], plan: ChunkPlan, share: WorkerShare, chunks: int
) -> Generator[Samples]:
    """The steps of the first chunks; while one is used the next is read."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as threads:
        next_read = threads.submit(read, 0)
        for chunk in range(chunks):
            table = next_read.result()
            if chunk + 1 < chunks:
                next_read = threads.submit(read, chunk + 1)
            for index, step in enumerate(plan.steps(chunk)):
                yield _samples(table.slice(index * share.samples_per_step, share.samples_per_step), share, step)


def _through_ray(read: Callable[[int], pa.Table], plan: ChunkPlan, share: WorkerShare) -> Generator[pa.Table]:
    """The steps after the direct ones, a table each, by one Ray Data execution that begins with the first ``next``."""
    if plan.chunks <= plan.direct:
        return
    import ray.data

    from heliostat.data.chunk_tasks import ChunkTasks
    from heliostat.data.executor_pause import PauseBetweenTurns

    def fetch(chunk: int) -> pa.Table:
        try:
            return read(plan.direct + chunk)
        except HeliostatError as error:
            return _failure(error)

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        object_store_memory=_CHUNKS_AHEAD * plan.chunk_bytes
    )
    context.target_max_block_size = plan.chunk_bytes  # by default several chunks wait until they are 128 MiB together
    context.custom_execution_callback_classes = [PauseBetweenTurns]
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # nobody reads what a thread in every task would measure each second
    context.print_on_execution_start = False
    # A consumer that waits for a checkpoint, or storage that is away, is no failure of the execution.
    context.execution_no_progress_timeout_s = -1
    chunks = plan.chunks - plan.direct
    dataset = ray.data.read_datasource(
        ChunkTasks(chunks, fetch),
        override_num_blocks=min(chunks, _MAX_BLOCKS),
        num_cpus=_TASK_CPUS,
        concurrency=min(chunks, _TASKS_AT_ONCE),
    )
    yield from dataset.iter_batches(
        batch_size=share.samples_per_step, batch_format="pyarrow", prefetch_batches=2, drop_last=False
    )


def _samples(table: pa.Table, share: WorkerShare, step: int) -> Samples:
    positions = table["position"].to_pylist()
    if _FAILED in positions:
        raise _raised(table["image"][positions.index(_FAILED)].as_py())
    if positions != share.positions(step):
        raise SampleOrderError(
            f"step {step} of worker {share.rank} got samples from position {positions[:1]} on, not from "
            f"{share.positions(step)[:1]}",
            "Nothing was trained on them; run the same command again to resume, and report this",
        )
    read, retries = (sum(table[name].to_pylist()) for name in ("bytes_read", "retries"))
    views, labels = (table[name].to_pylist() if name in table.column_names else [] for name in (VIEW, "label"))
    return Samples(positions, table["id"].to_pylist(), table["image"].to_pylist(), read, retries, views, labels)


def _failure(error: HeliostatError) -> pa.Table:
    """An error as a row: Ray Data keeps only the text of what a task raises, and the user needs the error itself."""
    text = json.dumps([type(error).__name__, error.fact, error.next_step]).encode()
    image = pa.array([text], pa.binary())
    return pa.table({"id": [""], "image": image, "position": [_FAILED], "bytes_read": [0], "retries": [0]})


def _raised(text: bytes) -> HeliostatError:
    name, fact, next_step = json.loads(text)
    error: HeliostatError = getattr(errors, name)(fact, next_step)
    return error

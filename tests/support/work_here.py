"""Work on many items in this process: what Ray does on a cluster, one after the other and without its overhead."""

from collections.abc import Iterable, Iterator

from heliostat.data.ray_tasks import ActorPool, Task


def run_here(payloads: Iterable[tuple[int, bytes]], task: Task | ActorPool) -> Iterator[tuple[int, bytes]]:
    """As ``run_tasks``."""
    work = task.make() if isinstance(task, ActorPool) else task
    for index, payload in payloads:
        yield index, work(payload)

"""Work on many things by a few threads, without holding more results than that."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

THREADS = 8


def map_in_flight(
    work: Callable[[ItemT], ResultT], items: Iterable[ItemT], threads: int = THREADS
) -> Iterator[ResultT]:
    """``work`` of each item, in order, at most twice ``threads`` of them ahead of the caller.

    Raises:
        Whatever ``work`` raises, in its turn; what was begun after it is finished first.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="in-flight")
    begun: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) >= 2 * threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

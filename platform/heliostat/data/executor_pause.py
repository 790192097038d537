"""Keeps Ray Data's executor from taking a whole core while it waits.

Ray 2.60's scheduling loop waits for tasks that have output. While back-pressure holds output back, such a task is ready
at once, so the loop turns without waiting: a whole core for each pipeline whose consumer is slower than its source,
which is what training is. (Measured: training on 2 cores ran at 0.4 of its speed.) A pause in every turn ends that. A
turn costs some 12 ms all the same: twenty a second a quarter of a core, a fifth of what it takes to make crops. So they
are rare while the worker has something to take.
"""

import time

from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor

AWAITED_S = 0.05
"""Pause while nothing is there to take: twenty turns a second start more tasks than storage can serve."""
AHEAD_S = 1.0
"""Pause while something is."""


class PauseBetweenTurns(ExecutionCallback):  # type: ignore[misc]  # Ray is not typed
    """Sleeps once in every turn of the scheduling loop."""

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Called by the executor's own thread in each turn."""
        time.sleep(AWAITED_S if executor._consumer_idling() else AHEAD_S)

"""What processes import that stand by for training workers and for feeders: all that they would import themselves.

Named by ``heliostat.elastic.standby.import_hook`` in the environments of both; Ray runs it when it starts a process.
"""

import importlib
import os
import threading
from collections.abc import Sequence

from heliostat.config.secrets import fill_environment

_LOWEST_PRIORITY = 19
_OF_FEEDER = ("heliostat.training.feed", "heliostat.data.stream", "ray.data")
_OF_WORKER = (
    "ray.train.torch",
    "ray.train.v2._internal.execution.worker_group.worker",
    "heliostat.training.attempt",
    "heliostat.elastic.holders",
    "torch.distributed",
    "deepspeed",
    # Imported late by DeepSpeed, and brings torch's compiler, which takes as long as most others together.
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.stage3",
)


def of_worker() -> None:
    """Import what a training worker needs."""
    _give_way_and_import(_OF_WORKER)


def of_feeder() -> None:
    """Import what a feeder needs."""
    _give_way_and_import(_OF_FEEDER)


def _give_way_and_import(modules: Sequence[str]) -> None:
    """In a thread of the lowest priority: whoever trains comes first.

    A process has one hook: what the job's own would have done is done here.
    """
    fill_environment()
    thread = threading.Thread(target=_import, args=(modules,))
    thread.start()
    thread.join()


def _import(modules: Sequence[str]) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)  # Linux: of this thread alone
    for name in modules:
        importlib.import_module(name)

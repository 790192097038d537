"""Host memory that a save takes beside the state itself: part of bench_trainer.py, in a process of its own.

``python save_memory.py FOLDER MIB`` saves a state of so many MiB three times, as training does (a copy, then a shard
from the copy), and prints the largest growth of the process's own memory over the size of the state.
"""

import sys
import threading
from pathlib import Path

from checkpoint_files import random_state
from heliostat.checkpoint.format import checkpoint_folder
from heliostat.checkpoint.snapshot import Snapshot
from heliostat.checkpoint.writer import write_shard
from heliostat.storage import open_store
from process_tree import own

_SAVES = 3
_LOOK_S = 0.01
_BYTES_PER_MIB = 2**20


def peak_over_state(folder: Path, state_mib: int) -> float:
    """Peak over the size of the state; 1 is the copy alone."""
    state = random_state(state_mib * _BYTES_PER_MIB)
    store = open_store(str(folder))
    write_shard(store, checkpoint_folder(0, 1), 0, state[:1])  # whatever the first write loads is not of the save
    before_mib = peak_mib = own()
    done = threading.Event()

    def look() -> None:
        nonlocal peak_mib
        while not done.wait(_LOOK_S):
            peak_mib = max(peak_mib, own())

    watching = threading.Thread(target=look)
    watching.start()
    snapshot = Snapshot()
    for step in range(1, _SAVES + 1):
        write_shard(store, checkpoint_folder(step, 1), 0, snapshot.take(state))
    done.set()
    watching.join()
    return (peak_mib - before_mib) / state_mib


if __name__ == "__main__":
    print(peak_over_state(Path(sys.argv[1]), int(sys.argv[2])))

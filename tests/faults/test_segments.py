import os
from multiprocessing.shared_memory import SharedMemory

from support.processes import segments, segments_used


def test_segments__are_seen_and_who_uses_them() -> None:
    before = segments()
    memory = SharedMemory(create=True, size=4096)
    try:
        assert segments() - before >= {memory.name}
        assert memory.name in segments_used(lambda pid: pid == os.getpid())
        assert memory.name not in segments_used(lambda pid: pid != os.getpid())
    finally:
        memory.close()
        memory.unlink()
    assert memory.name not in segments()

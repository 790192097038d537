"""What an attempt was doing that hangs, for people to read."""

import logging
from collections.abc import Mapping, Sequence

from heliostat.elastic.group import Member
from heliostat.elastic.signals import stacks
from heliostat.errors import HeliostatError
from heliostat.storage import Store

_log = logging.getLogger(__name__)

_STACKS_S = 3.0


def stacks_of(members: Sequence[Member]) -> dict[int, str]:
    """What the threads of those workers are doing that answer soon, by rank."""
    import ray
    from ray.exceptions import RayError

    calls = {member.call(stacks): member for member in members}
    done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_STACKS_S)
    texts: dict[int, str] = {}
    for call in done:
        try:
            texts[calls[call].rank] = ray.get(call)
        except RayError as error:
            texts[calls[call].rank] = f"gone: {type(error).__name__}"
    return texts


def write_stacks(store: Store, attempt: int, members: Sequence[Member], *seen: Mapping[int, str]) -> str:
    """Write down what was seen of workers, from inside and outside; the key below the run."""
    key = f"logs/hang-attempt-{attempt}.txt"
    texts = {each.rank: "\n".join(by_rank[each.rank] for by_rank in seen if each.rank in by_rank) for each in members}
    text = "\n".join(f"== worker {rank}\n{texts[rank] or 'does not answer'}" for rank in sorted(texts))
    try:
        store.put(key, text.encode())
    except HeliostatError as error:
        _log.warning("the stacks of a hang could not be written: %s", error)
    return key

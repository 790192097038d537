"""Asking a run that trains elsewhere for a checkpoint: small objects below the run, ``requests/<name>.json``.

Whoever wants one writes an object; the run looks for such objects now and then, and removes those that a commit has
answered. The object's own time is for people; what it asks for is a checkpoint begun after the run has seen it.
"""

import json
import secrets
from datetime import UTC, datetime

from heliostat.checkpoint.log import CheckpointEntry, CommitLog, LeaseEntry, has_ended
from heliostat.errors import NotTrainingError
from heliostat.storage import Store

_FOLDER = "requests/"


def ask(store: Store) -> str:
    """Ask the run whose store this is for a checkpoint; the request's key.

    Raises:
        NotTrainingError: The run is finished, or no attempt of it ever began.
    """
    entries = CommitLog(store).read()
    if has_ended(entries):
        raise NotTrainingError(f"the run {store.url} is finished", "Its last step has a checkpoint already")
    if not any(isinstance(entry, LeaseEntry) for entry in entries):
        raise NotTrainingError(f"no attempt of the run {store.url} has begun yet", "Start it, then ask again")
    key = f"{_FOLDER}{secrets.token_hex(8)}.json"
    store.create(key, json.dumps({"asked_at": datetime.now(UTC).isoformat(timespec="seconds"), "key": key}).encode())
    return key


def asked(store: Store) -> frozenset[str]:
    """Keys of the requests that nobody has answered."""
    return frozenset(info.key for info in store.list(_FOLDER))


def answer(store: Store, keys: frozenset[str]) -> None:
    """Remove requests that a commit has answered."""
    for key in sorted(keys):
        store.delete(key)


def answered(store: Store, key: str) -> CheckpointEntry | None:
    """The newest checkpoint once a request is answered, None before that.

    Raises:
        NotTrainingError: The run came to its end and left the request unanswered.
    """
    if store.exists(key):
        # Read after the request: a run ends only after the commit of its last step, which answers what it has seen.
        if has_ended(CommitLog(store).read()):
            raise NotTrainingError(f"the run {store.url} finished meanwhile", "Its last step has a checkpoint")
        return None
    committed = [entry for entry in CommitLog(store).read() if isinstance(entry, CheckpointEntry)]
    return committed[-1] if committed else None

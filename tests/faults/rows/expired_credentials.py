"""F27: the run's credentials expire, and somebody renews them in the credentials file a while later."""

import time
from pathlib import Path

from faults.frame import Outcome
from faults.rig import COMMIT_STEPS, GLOBAL_BATCH, Harm, Rig
from support.fault_proxy import Rule
from support.seaweedfs import ACCESS_KEY, NEXT_ACCESS_KEY, NEXT_SECRET_KEY, SECRET_KEY

_EXPIRED_S = 20.0
_LATE_STEP = 80
"""Its images come only with the new credentials."""


def inject(rig: Rig) -> list[Outcome]:
    """The old key is refused from the first checkpoint on, also in what was asked for before; the new one is not."""
    path = rig.folder / "credentials"
    _write(path, ACCESS_KEY, SECRET_KEY)
    late = rig.shard_of(_LATE_STEP * GLOBAL_BATCH)
    rig.proxy.plan(Rule("slow_down", "GET", contains=late, times=None))
    environment = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_SHARED_CREDENTIALS_FILE": str(path)}
    with rig.run("credentials", environment) as run:
        run.wait_for_commit(COMMIT_STEPS)
        began = time.time()
        rig.proxy.plan(Rule("expired", contains=f"Credential={ACCESS_KEY}/", times=None))
        time.sleep(_EXPIRED_S)
        refused = rig.proxy.faults["expired"]
        _write(path, NEXT_ACCESS_KEY, NEXT_SECRET_KEY)
        ended = time.time()
        finished = run.finish()
    if not refused:
        raise AssertionError("no request was refused: the run did not need its credentials")
    return rig.judge(finished, [Harm("F27 expired credentials", began, ended)], note=f"{refused} requests refused")


def _write(path: Path, key: str, secret: str) -> None:
    path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")

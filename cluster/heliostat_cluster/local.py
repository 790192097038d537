"""The embedded Ray of one machine, for ``heliostat run``, the demo and ingest."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from heliostat.errors import ClusterUnreachableError

LOCAL_ENV = {
    # Unset, Ray 2.60 turns token authentication on for some processes and not for others, which then cannot talk.
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
}
_TRAIN_ENV = ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_TRAIN_ENABLE_STATE_TRACKING")
"""Of those, what does not depend on how a cluster was started."""
_CONNECT_S = 5.0
_OBJECT_STORE_SHARE = 0.15
"""Of the machine's memory: steps that wait for their worker lie there. Ray's own default is twice that."""


@contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """The cluster that this machine belongs to, left afterwards.

    Args:
        address: As ``host:port`` of the cluster's head, or ``auto``.

    Raises:
        ClusterUnreachableError: there is no cluster at this address, or it does not answer.
    """
    import ray

    for name in _TRAIN_ENV:
        os.environ[name] = LOCAL_ENV[name]
    try:
        _connect(address)
        with _own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise ClusterUnreachableError(
            f"no Ray cluster can be joined at {address} ({type(error).__name__})",
            "Start Ray on this machine with ray start --address=HEAD:6379, and give the same address",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process' own handler: Ray's, which it installs over it, exits before what was done is saved."""
    own = signal.getsignal(signal.SIGTERM)
    yield
    if callable(own) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, own)


def _connect(address: str) -> None:
    """Ray itself tries for minutes where nothing listens."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


@contextmanager
def local_ray(num_cpus: float) -> Iterator[None]:
    """A Ray of our own on this machine, gone afterwards; never joins one that is already there.

    Args:
        num_cpus: What Ray may hand out, more than the machine has if need be: where workers and data tasks do not fit
            side by side, they wait for each other for ever.
    """
    import ray

    os.environ.update(LOCAL_ENV)
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=int(_OBJECT_STORE_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
    )
    try:
        yield
    finally:
        ray.shutdown()

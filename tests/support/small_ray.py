"""A Ray for tests of single actors."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def small_ray() -> Iterator[None]:
    """A small Ray of our own whose workers see the test's modules, and gone at the end."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
    )
    try:
        yield
    finally:
        ray.shutdown()

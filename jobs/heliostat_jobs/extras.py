"""Packages that only some commands need."""

from importlib.util import find_spec

from heliostat.errors import MissingExtraError


def require_extra(extra: str, *modules: str) -> None:
    """Refuse a command at once, rather than in the middle, where its packages are not installed.

    Args:
        extra: The extra of the ``heliostat`` distribution that brings them: train, cpu, gpu, demo.
        modules: Their import names. They are looked for but not imported.

    Raises:
        MissingExtraError: Names those that are missing and the command that installs them.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(
            f"this command needs {' and '.join(missing)}, which {verb} not installed",
            f"""Run: pip install "heliostat[{extra}]" """,
        )

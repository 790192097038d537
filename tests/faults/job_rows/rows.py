"""The scenarios as rows of the table."""

from collections.abc import Callable

from faults.frame import Outcome
from faults.job_rig import JobRig


def row(fault: str, scenario: Callable[[JobRig], float | None]) -> Callable[[JobRig], list[Outcome]]:
    """One that tells what became of one fault."""

    def inject(rig: JobRig) -> list[Outcome]:
        recovered_s = scenario(rig)
        shown = None if recovered_s is None else round(recovered_s, 1)
        return [Outcome(fault, survived=True, is_exact=True, recover_s=shown)]

    return inject

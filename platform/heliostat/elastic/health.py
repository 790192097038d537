"""Which workers hang and which are slow: pure decisions over their pulses."""

from collections.abc import Mapping, Sequence

import numpy as np

from heliostat.elastic.signals import RECENT_STEPS, Pulse

_LONGEST_FACTOR = 2
_STANDARD_ERRORS = 2.5
_STRAGGLER_TIMES = 1.1
_STRAGGLER_FLOOR_S = 0.02
_LEAST_S = 1e-6
_ENOUGH_TO_COMPARE = 2
"""Workers."""


def hung_ranks(
    pulses: Mapping[int, Pulse], unheard_s: Mapping[int, float], hang_s: float, start_patience_s: float
) -> dict[int, float]:
    """The workers to blame for an attempt that stands still, and for how many seconds it has; empty while it moves.

    In lockstep one worker that stops makes all of them wait. To blame are those that do not answer; if all answer,
    those that got the least done.

    Args:
        pulses: The last ones, by rank.
        unheard_s: Seconds since each worker last answered.
        hang_s: How long nothing may move, once the attempt has done its first step.
        start_patience_s: How long, before that.
    """
    if not pulses:
        return {}
    silent_s = {rank: pulse.silent_s + unheard_s[rank] for rank, pulse in pulses.items()}
    has_trained = all(pulse.has_trained for pulse in pulses.values())
    longest_s = max(pulse.longest_s for pulse in pulses.values())
    limit_s = max(hang_s, _LONGEST_FACTOR * longest_s) if has_trained else max(hang_s, start_patience_s)
    if min(silent_s.values()) < 0.5 * limit_s or max(silent_s.values()) < limit_s:
        return {}
    mute = {rank: silent_s[rank] for rank in pulses if unheard_s[rank] > 0.5 * limit_s}
    if mute:
        return mute
    least = min(pulse.beat for pulse in pulses.values())
    return {rank: silent_s[rank] for rank, pulse in pulses.items() if pulse.beat == least}


def stragglers(local_s: Sequence[Sequence[float]]) -> dict[int, float]:
    """Workers that take longer than the others over what each does alone, and how many times as long.

    Steps vary, the more the busier the machines are. Named is who is slower beyond what chance explains: by
    ``_STANDARD_ERRORS`` of the difference of the mean logarithms, and then by another ``_STRAGGLER_TIMES``.

    Args:
        local_s: Seconds of each worker's last steps, by rank; nobody is named before there are ``RECENT_STEPS``.
    """
    if len(local_s) < _ENOUGH_TO_COMPARE or min(map(len, local_s)) < RECENT_STEPS:
        return {}
    logarithms = np.log(np.maximum(np.array(local_s), _LEAST_S))
    means, errors = logarithms.mean(axis=1), logarithms.std(axis=1, ddof=1) / RECENT_STEPS**0.5
    found: dict[int, float] = {}
    for rank in range(len(local_s)):
        usual, its_error = float(np.median(np.delete(means, rank))), float(np.delete(errors, rank).mean())
        slower, its_bound = float(means[rank]) - usual, _STANDARD_ERRORS * float(np.hypot(errors[rank], its_error))
        is_much = np.exp(means[rank]) - np.exp(usual) > _STRAGGLER_FLOOR_S
        if slower - its_bound > np.log(_STRAGGLER_TIMES) and is_much:
            found[rank] = float(np.exp(slower))
    return found

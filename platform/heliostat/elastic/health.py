"""Which workers hang and which are slow: pure decisions over their pulses."""

from collections.abc import Mapping, Sequence
from statistics import median

from heliostat.elastic.signals import Pulse

_LONGEST_FACTOR = 2
_STRAGGLER_TIMES = 1.3
_STRAGGLER_FLOOR_S = 0.02


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


def stragglers(local_s: Sequence[float]) -> dict[int, float]:
    """Workers that take much longer than the others over what each does alone, and how many times as long.

    Args:
        local_s: Seconds of each worker, by rank.
    """
    found: dict[int, float] = {}
    for rank, mine in enumerate(local_s):
        others = [each for other, each in enumerate(local_s) if other != rank]
        usual = median(others) if others else mine
        if usual > 0 and mine > _STRAGGLER_TIMES * usual and mine - usual > _STRAGGLER_FLOOR_S:
            found[rank] = mine / usual
    return found

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.training.triggers import Decision, Vote, due

QUIET = Vote(waits=False, failed=False, is_saving=False, wanted=False, is_copying=False, stopping=False)
SAVING = replace(QUIET, is_saving=True)
WANTED = replace(QUIET, waits=True, wanted=True)
BOTH = replace(QUIET, is_saving=True, wanted=True)
SAVE, LATER, NOTHING = Decision(True, False), Decision(False, True), Decision(False, False)


@pytest.mark.parametrize(
    ("vote", "done", "saved", "pending", "decision"),
    [
        (QUIET, 9, 0, False, NOTHING),
        (QUIET, 10, 0, False, SAVE),
        (QUIET, 10, 10, False, NOTHING),  # resumed from it, or asked again while images are waited for
        (WANTED, 10, 10, False, LATER),  # nothing new yet, and nobody says it again: it is for the next step
        (BOTH, 10, 10, False, LATER),
        (QUIET, 10, 10, True, LATER),
        (WANTED, 11, 10, False, SAVE),
        (SAVING, 20, 10, False, LATER),
        (SAVING, 21, 10, True, LATER),
        (SAVING, 20, 20, False, NOTHING),
        (BOTH, 17, 10, False, LATER),
        (QUIET, 22, 10, True, SAVE),  # the first boundary after the commit
        (QUIET, 22, 22, False, NOTHING),
        (QUIET, 30, 22, False, SAVE),  # multiples count, whenever the last one was made
    ],
)
def test_due__table(vote: Vote, done: int, saved: int, pending: bool, decision: Decision) -> None:
    assert due(vote, done, saved, pending, every_steps=10) == decision


@given(busy_steps=st.lists(st.integers(1, 30), max_size=20), every_steps=st.integers(1, 12))
def test_due__loses_no_trigger_and_never_begins_two(busy_steps: list[int], every_steps: int) -> None:
    """Whatever the time that each save takes: after the last one is written, nothing that fell due is unsaved."""
    durations = iter(busy_steps)
    saved, pending, busy_until, newest_due = 0, False, 0, 0
    for done in range(1, 200):
        if done % every_steps == 0:
            newest_due = done
        is_saving = done < busy_until
        decision = due(replace(QUIET, is_saving=is_saving), done, saved, pending, every_steps)
        pending = decision.pending
        if decision.save:
            assert not is_saving
            saved, busy_until = done, done + next(durations, 0)
        assert is_saving or saved >= newest_due

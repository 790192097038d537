import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from heliostat.elastic import signals
from heliostat.elastic.signals import Assignment, Mailbox, Order, Pulse, assign, deliver, pulse, stacks


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    """The process's own, as new."""
    box = Mailbox()
    monkeypatch.setattr(signals, "MAILBOX", box)
    yield box


def run_steps(box: Mailbox, steps: range) -> None:
    for step in steps:
        box.step_begins()
        box.meets_others()
        box.step_ends(step + 1)


def test_beat__counts_and_starts_silence_anew(box: Mailbox) -> None:
    box.beat_at -= 100.0
    before = pulse()
    assert before.silent_s >= 100
    box.beat()
    after = pulse()
    assert after.beat == before.beat + 1
    assert after.silent_s < 100


def test_longest_s__is_of_silences_since_the_first_steps(box: Mailbox) -> None:
    box.attempt_begins(1)
    box.beat_at -= 1000.0  # imports, compilation
    run_steps(box, range(1))
    box.beat_at -= 500.0  # what else is made at first use
    run_steps(box, range(1, 4))
    assert box.longest_s < 1.0
    for silent_s in (50.0, 20.0):
        box.beat_at -= silent_s
        box.beat()
    assert 50 <= box.longest_s < 500


def test_steps_pause__what_follows_may_take_its_time(box: Mailbox) -> None:
    run_steps(box, range(1))
    assert pulse().has_trained
    longest_s = box.longest_s
    box.steps_pause()
    box.beat_at -= 100.0
    box.beat()
    assert not pulse().has_trained
    assert box.longest_s < longest_s + 100


def test_local_s__leaves_out_the_first_steps_of_an_attempt(box: Mailbox) -> None:
    for attempt in (1, 2):
        box.attempt_begins(attempt)
        before_s = box.step_s
        run_steps(box, range(3))
        assert (list(box.local_s), box.step_s) == ([], before_s)
        run_steps(box, range(3, 4))
        assert box.step_s != before_s
        (local_s,) = box.local_s
        assert local_s > 0


def test_local_s__ends_with_the_first_exchange_of_a_step(box: Mailbox) -> None:
    run_steps(box, range(3))
    box.step_begins()
    box.meets_others()
    (local_s,) = box.local_s
    assert local_s > 0
    time.sleep(0.01)
    box.meets_others()
    box.step_ends(4)
    box.meets_others()  # between steps
    assert list(box.local_s) == [local_s]
    assert box.step_s >= 0.01


def test_take__gives_an_order_once(box: Mailbox) -> None:
    assert not box.take(Order.CHECKPOINT)
    deliver(Order.CHECKPOINT)
    deliver(Order.CHECKPOINT)
    deliver(Order.STOP)
    assert box.take(Order.CHECKPOINT)
    assert not box.take(Order.CHECKPOINT)
    assert box.orders == {Order.STOP}
    assert [order for order, _ in box.received] == [Order.CHECKPOINT, Order.CHECKPOINT, Order.STOP]


def test_pulse__says_how_the_worker_is(box: Mailbox) -> None:
    box.attempt_begins(3)
    run_steps(box, range(40, 41))
    box.save_s, box.lost_holder = 1.5, True
    expected = Pulse(
        attempt=3,
        steps_done=41,
        beat=2,
        silent_s=0.0,
        has_trained=True,
        longest_s=0.0,
        local_s=(),
        step_s=0.0,
        save_s=1.5,
        lost_holder=True,
    )
    assert replace(pulse(), silent_s=0.0) == expected


def test_pulse__a_checkpoint_that_is_being_written_takes_as_long_as_it_has_taken_by_now(box: Mailbox) -> None:
    box.save_s = 1.5
    box.save_began = time.monotonic() - 30
    assert pulse().save_s >= 30
    box.save_began = time.monotonic() - 20
    box.save_ends()
    assert 20 <= pulse().save_s < 30
    box.save_began = time.monotonic()
    assert 20 <= pulse().save_s < 30  # the last one says more of it


def test_attempt_begins__knows_of_no_step_and_no_checkpoint(box: Mailbox) -> None:
    box.attempt_begins(1)
    box.save_began = time.monotonic() - 30
    run_steps(box, range(3))
    box.attempt_begins(2)
    assert (pulse().steps_done, pulse().save_s) == (0, 0.0)


def test_assign__anew_makes_a_lost_holder_good(box: Mailbox) -> None:
    box.lost_holder = True
    assignment = Assignment(("own", "next"), ("own", "next", "third"))
    assign(assignment)
    assert box.assignment is assignment
    assert not pulse().lost_holder


def test_stacks__names_threads_and_where_they_are() -> None:
    is_seen = threading.Event()
    thread = threading.Thread(target=is_seen.wait, name="waits for a test")
    thread.start()
    text = stacks()
    is_seen.set()
    thread.join()
    assert "thread waits for a test:" in text
    assert "test_stacks__names_threads_and_where_they_are" in text

"""The chain and a world of one; larger worlds are compared where whole runs are."""

import hashlib
from collections.abc import Iterator

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from support.worlds import step_input, tiny_recipe
from torch._C._distributed_c10d import HashStore

from heliostat.data.slots import SlotPlan
from heliostat.training.ledger import EMPTY, SampleLedger, next_digest, slot_digest

RECIPE = tiny_recipe()
ALONE = SlotPlan(RECIPE.training.slots, 1)
IDS = st.lists(st.binary(min_size=32, max_size=32).map(bytes.hex), max_size=5)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@pytest.fixture
def world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_next_digest__is_the_hash_of_the_one_before_and_the_slots() -> None:
    slots = [["ab" * 32, "cd" * 32], ["ef" * 32]]
    first = next_digest(EMPTY, map(slot_digest, slots))
    assert first == sha(bytes(32) + sha(b"ab" * 32 + b"cd" * 32) + sha(b"ef" * 32))
    assert next_digest(first, []) == sha(first)
    assert first.hex().startswith("4f07716802f7fe26")


@given(one=st.lists(IDS, min_size=1, max_size=4), other=st.lists(IDS, min_size=1, max_size=4))
def test_next_digest__tells_any_two_steps_apart(one: list[list[str]], other: list[list[str]]) -> None:
    digests = [next_digest(EMPTY, map(slot_digest, slots)) for slots in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)


def test_sample_ledger__chains_the_steps_it_was_told_of(world_of_one: None) -> None:
    steps = [step_input(RECIPE, ALONE, 0, step) for step in range(3)]
    expected = EMPTY
    for step in steps:
        expected = next_digest(expected, [slot_digest(slot.ids) for slot in step.slots])
    at_once = SampleLedger(ALONE, EMPTY)
    for step in steps:
        at_once.consumed(step)
    assert at_once.exchange() == expected

    piecewise = SampleLedger(ALONE, EMPTY)
    piecewise.consumed(steps[0])
    resumed = SampleLedger(ALONE, piecewise.exchange())
    resumed.consumed(steps[1])
    resumed.exchange()
    resumed.consumed(steps[2])
    assert resumed.exchange() == expected


def test_sample_ledger__without_a_new_step_the_chain_stays(world_of_one: None) -> None:
    ledger = SampleLedger(ALONE, sha(b"before"))
    assert ledger.exchange() == ledger.exchange() == sha(b"before")

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.config.keys import keys_of, sections_of
from heliostat.config.kinds import KINDS
from heliostat.config.nearest import edit_distance, nearest_key

KEYS = {kind: [*keys_of(model), *sections_of(model)] for kind, model in KINDS.items()}
WORDS = st.text("abc", max_size=6)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("trainng.steps", "training.steps"),
        ("training.step", "training.steps"),
        ("training.warmup", "training.warmup_steps"),
        ("scaling.steps", "training.steps"),
        ("steps", "training.steps"),
        ("training.workers", "scaling.workers"),
        ("workers", "scaling.workers"),
        ("optimizer.lr", "training.base_lr"),
        ("trainingsteps", "training.steps"),
        ("sede", "seed"),
        ("modle", "model"),
        ("training.learning_rate_schedule", None),
        ("x" * 100_000, None),
    ],
)
def test_nearest_key__table(written: str, expected: str | None) -> None:
    assert nearest_key(written, KEYS["pretrain"]) == expected


@settings(deadline=None)
@given(st.data())
def test_nearest_key__one_typo_anywhere_finds_the_right_key(data: st.DataObject) -> None:
    keys = KEYS[data.draw(st.sampled_from(sorted(KEYS)))]
    key = data.draw(st.sampled_from([key for key in keys if key not in {"run", "knn"}]))  # these two are one typo apart
    at = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz._"))
    swapped = key[:at] + key[at + 1 : at + 2] + key[at] + key[at + 2 :]
    typo = data.draw(
        st.sampled_from(
            [key[:at] + key[at + 1 :], key[:at] + letter + key[at:], key[:at] + letter + key[at + 1 :], swapped]
        )
    )
    assert nearest_key(typo, keys) == key


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [("", "", 0), ("", "abc", 3), ("steps", "step", 1), ("steps", "stesp", 1), ("blur", "flip", 3), ("abc", "ca", 3)],
)
def test_edit_distance__table(left: str, right: str, distance: int) -> None:
    assert edit_distance(left, right) == distance


@given(WORDS, WORDS)
def test_edit_distance__is_symmetric_and_zero_only_for_equals(left: str, right: str) -> None:
    assert edit_distance(left, right) == edit_distance(right, left) <= max(len(left), len(right))
    assert (edit_distance(left, right) == 0) == (left == right)

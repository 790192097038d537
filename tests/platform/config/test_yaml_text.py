import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.config.yaml_text import Value, read_mapping, read_value, show_value
from heliostat.errors import RecipeSyntaxError

# What YAML can hold at all: no surrogates, and control characters only as escapes, which show_value writes.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4e-3", 0.004),
        ("1e-3", 0.001),
        ("-2.5E+4", -25000.0),
        (".5", 0.5),
        ("7.", 7.0),
        ("-.inf", -math.inf),
        ("300", 300),
        ("-1", -1),
        ("007", 7),
        ("1:30", "1:30"),  # YAML 1.1 reads ninety
        ("no", "no"),  # YAML 1.1 reads false
        ("2026-11-21", "2026-11-21"),  # YAML 1.1 reads a date
        ("1_000", "1_000"),
        ("'3'", "3"),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, 2.0, x]", [1, 2.0, "x"]),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
    ],
)
def test_read_value__table(text: str, expected: Value) -> None:
    value = read_value(text, "here")
    assert value == expected
    assert type(value) is type(expected)


@given(VALUES)
def test_show_value__reads_back_as_the_same_value_from_one_line(value: Value) -> None:
    shown = show_value(value)
    assert len(shown.splitlines()) == 1 or shown == ""
    assert repr(read_value(shown, "here")) == repr(value)


def test_show_value__not_a_number_and_huge_integers_have_a_form_too() -> None:
    assert show_value(math.nan) == ".nan"
    assert show_value(10**5000) == "a number of more than 100 digits"
    assert show_value({"a": [1, "x y"]}) == '{a: [1, "x y"]}'


def test_read_mapping__knows_the_line_of_each_key() -> None:
    document = read_mapping("a: 1\n\nb:\n  c: [1, 2]\n  d: {e: x}\n", "r.yaml")
    assert document.values == {"a": 1, "b": {"c": [1, 2], "d": {"e": "x"}}}
    assert document.lines == {("a",): 1, ("b",): 3, ("b", "c"): 4, ("b", "d"): 5, ("b", "d", "e"): 5}


LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml holds nothing"),
        ("- 1", "r.yaml holds a list"),
        ("word", "r.yaml holds a single value"),
        ("a: 1\nb: [", "r.yaml:3 is not valid YAML: "),
        ("a: 1\n---\nb: 1", "expected a single document"),
        ("a: 1\nb: 2\na: 3", "r.yaml:3 sets a a second time"),
        ("s:\n  k: 1\n  k: 1", r"r.yaml:3 sets s.k a second time"),
        ("a: x\ns.k: 1", r"r.yaml:2 has the dotted key s.k, .* Write k indented below s"),
        ("[1]: 2", "r.yaml:1 has a list or a mapping as a key"),
        ("a: !!python/object/apply:os.system ['true']", "r.yaml:1 has the tag"),
        ("!!set {a: 1}", "r.yaml:1 has the tag"),
        ("a: !custom x", 'r.yaml:1 has the tag "!custom"'),
        ("a: !!int x", "r.yaml:1 has x, which cannot be read as int"),
        ("a: " + "9" * 5000, "r.yaml:1 has .* cannot be read as int"),
        ("a: *nobody", "found undefined alias"),
        ("a: &a [*a]", "r.yaml:1 expands to over"),
        ("a: &a {b: *a}", "r.yaml:1 expands to over"),
        (LAUGHS + "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d]", "expands to over 10000 values"),
        ("a: " + "[" * 100_000, "nested more than 32 levels deep"),
        ("a: \x00", "a character that YAML does not allow"),
        ("a: \ud800", "a character that YAML does not allow"),
        ("#" * (1 << 20) + "\n", "larger than 1048576 bytes"),
    ],
)
def test_read_mapping__names_what_is_wrong_and_where(text: str, message: str) -> None:
    with pytest.raises(RecipeSyntaxError, match=message):
        read_mapping(text, "r.yaml")

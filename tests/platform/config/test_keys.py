from typing import Any

import pytest

from heliostat.config.keys import describe_schema, keys_of, sections_of, values_of
from heliostat.config.kinds import KINDS
from heliostat.config.pretrain import PretrainRecipe


def test_keys_of__lists_values_in_model_order_and_no_sections() -> None:
    keys = list(keys_of(PretrainRecipe))
    assert keys[:5] == ["kind", "name", "root", "seed", "dataset.name"]
    assert not set(keys) & set(sections_of(PretrainRecipe))


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of__every_key_has_a_rule_in_words_and_a_description(kind: str) -> None:
    for dotted, key in keys_of(KINDS[kind]).items():
        assert key.rule, dotted
        assert dotted == "kind" or key.description != key.name, dotted


def test_values_of__are_json_values_under_the_same_keys() -> None:
    recipe = PretrainRecipe.model_validate(
        {"kind": "pretrain", "name": "a", "dataset": {"name": "d"}, "training": {"steps": 3}}
    )
    values = values_of(recipe)
    assert list(values) == list(keys_of(PretrainRecipe))
    assert values["augmentation.global_scale"] == [0.32, 1.0]
    assert values["training.steps"] == 3


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "exclusiveMinimum": 0}, "a whole number greater than 0"),
        (
            {"type": "number", "minimum": 0, "maximum": 1, "exclusiveMaximum": 1},
            "a number of at least 0 and less than 1",
        ),
        ({"type": "boolean"}, "true or false"),
        ({"type": "string", "minLength": 1}, "text that is not empty"),
        ({"type": "string", "pattern": "^a$"}, "text that matches ^a$"),
        ({"enum": ["a", "b"], "type": "string"}, "one of a, b"),
        ({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}, "a whole number of at least 1 or null"),
        ({"const": "pretrain", "type": "string"}, "pretrain"),
        (
            {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            "a list of at least 1 value, each a whole number",
        ),
        (
            {"type": "array", "prefixItems": [{"type": "number"}] * 2, "minItems": 2, "maxItems": 2},
            "a list of 2 values, each a number",
        ),
    ],
)
def test_describe_schema__table(schema: dict[str, Any], words: str) -> None:
    assert describe_schema(schema) == words

import json

import pytest

from heliostat.config.keys import keys_of
from heliostat.config.kinds import KINDS, model_of_kind, recipe_json_schema
from heliostat.config.problems import Setting
from heliostat.errors import InvalidValueError


def test_recipe_json_schema__covers_every_kind_and_is_json() -> None:
    schema = json.loads(json.dumps(recipe_json_schema()))
    assert schema["discriminator"]["propertyName"] == "kind"
    assert len(schema["oneOf"]) == len(KINDS)


def test_recipe_json_schema__asks_only_for_keys_without_a_default() -> None:
    schema = recipe_json_schema("pretrain")
    assert schema["required"] == ["kind", "name", "dataset", "training"]
    assert schema["$defs"]["ModelConfig"]["required"] == []  # the arch gives them
    assert schema["$defs"]["TrainingConfig"]["required"] == ["steps"]
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("kind", KINDS)
def test_kinds__are_what_their_models_call_themselves(kind: str) -> None:
    assert keys_of(model_of_kind(Setting(kind, "test")))["kind"].rule == kind


def test_recipe_json_schema__unknown_kind_lists_the_kinds() -> None:
    with pytest.raises(InvalidValueError, match=r"kind is pretain .*one of pretrain, adapt, distill, evaluate"):
        recipe_json_schema("pretain")

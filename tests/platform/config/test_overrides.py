import pytest

from heliostat.config.overrides import Override, from_command_line, from_environment
from heliostat.config.yaml_text import Value
from heliostat.errors import OverrideSyntaxError


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training.steps=300", "training.steps", 300),
        ("training.base_lr=4e-3", "training.base_lr", 0.004),
        ("augmentation.global_scale=[0.3, 1]", "augmentation.global_scale", [0.3, 1]),
        ("root=s3://bucket/a=b", "root", "s3://bucket/a=b"),
        (" name = demo", "name", "demo"),
        ("name=", "name", None),
    ],
)
def test_from_command_line__table(text: str, key: str, value: Value) -> None:
    assert from_command_line(text) == Override(key, value, "--set")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.steps", "--set training.steps is not key=value"),
        ("=3", 'HS-CONF-005: --set "=3" is not key=value'),
        ("", 'HS-CONF-005: --set "" is not key=value'),
        ("a=@", 'HS-CONF-005: --set a has the value "@", which is not YAML'),
        ("a={b: 1}", "HS-CONF-005: --set a holds a mapping"),
        ("a=b: 1", "HS-CONF-005: --set a holds a mapping"),
        ("a=\udcff", "HS-CONF-005: --set a has the value"),
    ],
)
def test_from_command_line__names_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(OverrideSyntaxError, match=message.replace("(", r"\(")):
        from_command_line(text)


def test_from_environment__two_underscores_are_a_dot_and_other_variables_are_left_alone() -> None:
    environ = {
        "HELIOSTAT__TRAINING__WARMUP_STEPS": "1e1",
        "HELIOSTAT__NAME": "demo",
        "HELIOSTAT_TEST_DATA": "x",
        "HOME": "y",
    }
    assert from_environment(environ) == [
        Override("name", "demo", "environment HELIOSTAT__NAME"),
        Override("training.warmup_steps", 10.0, "environment HELIOSTAT__TRAINING__WARMUP_STEPS"),
    ]


def test_from_environment__names_the_variable_that_cannot_be_read() -> None:
    with pytest.raises(OverrideSyntaxError, match="environment HELIOSTAT__NAME has the value"):
        from_environment({"HELIOSTAT__NAME": "["})

"""Secrets are given by reference, looked up where a process runs, and never repeated."""

import json
from pathlib import Path

import pytest

from heliostat.config.secrets import VARIABLE, fill_environment, look_up, parse_references
from heliostat.errors import CommandLineError, SecretNotFoundError


def test_parse_references__by_name() -> None:
    texts = ["WANDB_API_KEY=file:/run/secrets/wandb", "AWS_SECRET_ACCESS_KEY=env:NODE_KEY"]
    assert parse_references(texts) == {
        "WANDB_API_KEY": "file:/run/secrets/wandb",
        "AWS_SECRET_ACCESS_KEY": "env:NODE_KEY",
    }


@pytest.mark.parametrize(
    "text",
    [
        "KEY=canary-5f3a",
        "canary-5f3a",
        "c2VjcmV0canary==",
        "KEY=file:relative/canary-5f3a",
        "KEY=env:canary-5f3a",
        "=canary-5f3a",
    ],
)
def test_parse_references__a_value_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(CommandLineError) as caught:
        parse_references([text])
    assert "canary" not in str(caught.value)


def test_look_up__reads_files_without_their_line_end_and_variables(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    references = {"A": f"file:{tmp_path / 'key'}", "B": "env:OTHER"}
    assert look_up(references, {"OTHER": "from-environment"}) == {"A": "from-file", "B": "from-environment"}


@pytest.mark.parametrize("where", ["file:/nowhere/key", "env:NOT_THERE"])
def test_look_up__names_what_a_node_lacks(where: str) -> None:
    with pytest.raises(SecretNotFoundError, match=where):
        look_up({"KEY": where}, {})


def test_fill_environment__sets_what_the_references_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "value-of-other")
    monkeypatch.setenv(VARIABLE, json.dumps({"FILLED": "env:OTHER"}))
    monkeypatch.setenv("FILLED", "")
    fill_environment()
    import os

    assert os.environ["FILLED"] == "value-of-other"

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heliostat.config.evaluate import EvaluateRecipe
from heliostat.config.keys import keys_of, values_of
from heliostat.config.kinds import KINDS
from heliostat.config.load import ResolvedRecipe, load_recipe
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.yaml_text import show_value
from heliostat.errors import (
    ConfigError,
    HeliostatError,
    IndivisibleBatchError,
    InvalidValueError,
    MissingKeyError,
    RecipeNotFoundError,
    RecipeSyntaxError,
    TooManyWorkersError,
    UnknownKeyError,
)

PRETRAIN = "kind: pretrain\nname: demo\ndataset:\n  name: digits\ntraining:\n  steps: 300\n  base_lr: 4e-3\n"
EVALUATE = "kind: evaluate\nname: knn\nrun: demo\nbank: train\nqueries: test\n"

reuses_the_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "r.yaml"


def load(file: Path, text: str, *overrides: str, **environ: str) -> ResolvedRecipe:
    file.write_text(text, encoding="utf-8")
    return load_recipe(file, overrides, environ)


def test_load_recipe__values_come_from_the_last_that_speaks(file: Path) -> None:
    loaded = load(
        file,
        PRETRAIN,
        "training.steps=3",
        "training.steps=4",
        "model.arch=vit_b",
        HELIOSTAT__TRAINING__STEPS="2",
        HELIOSTAT__SEED="7",
    )
    recipe, origins = loaded.recipe, loaded.origins
    assert isinstance(recipe, PretrainRecipe)
    assert (recipe.training.steps, origins["training.steps"]) == (4, "--set")
    assert (recipe.seed, origins["seed"]) == (7, "environment HELIOSTAT__SEED")
    assert (recipe.training.base_lr, origins["training.base_lr"]) == (0.004, "r.yaml:7")
    assert (recipe.model.heads, origins["model.heads"]) == (12, "arch vit_b")
    assert (recipe.model.patch_px, origins["model.patch_px"]) == (14, "default")
    assert loaded.text == PRETRAIN
    assert list(origins) == list(keys_of(PretrainRecipe))


def test_load_recipe__the_environment_may_repair_what_the_file_says(file: Path) -> None:
    assert load(file, PRETRAIN.replace("300", "many"), HELIOSTAT__TRAINING__STEPS="5").recipe.name == "demo"


def test_load_recipe__an_override_can_change_the_kind(file: Path) -> None:
    assert isinstance(load(file, EVALUATE.replace("evaluate", "x"), "kind=evaluate").recipe, EvaluateRecipe)


def test_load_recipe__an_empty_section_means_its_defaults(file: Path) -> None:
    assert load(file, PRETRAIN + "augmentation:\n  # flip: 0.1\n").origins["augmentation.flip"] == "default"


def test_load_recipe__a_whole_number_is_a_number_and_a_byte_order_mark_no_matter(file: Path) -> None:
    recipe = load(file, "\ufeff" + PRETRAIN, "training.clip_norm=3").recipe
    assert isinstance(recipe, PretrainRecipe)
    assert repr(recipe.training.clip_norm) == "3.0"


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        (
            "trainng.steps=3",
            UnknownKeyError,
            r"unknown key trainng.steps \(--set\)\. The nearest key is training.steps\.",
        ),
        ("training.warmup=3", UnknownKeyError, "nearest key is training.warmup_steps"),
        ("scaling.steps=3", UnknownKeyError, "nearest key is training.steps"),
        ("zzzzzzzzz.y=3", UnknownKeyError, "The keys of a recipe are kind, name, root, seed, dataset, augmentation, "),
        ("scaling.machines=3", UnknownKeyError, "The keys of scaling are workers, min_workers, cpus_per_worker"),
        ("name.first=3", UnknownKeyError, "unknown key name.first"),
        ("training=3", InvalidValueError, "training is 3 .* section of keys. Set its keys, such as training.steps"),
        (
            "training.steps=abc",
            InvalidValueError,
            r"training.steps is abc \(--set\), but must be a whole number greater",
        ),
        ("training.steps='3'", InvalidValueError, r'training.steps is "3" \(--set\), but must be a whole number'),
        ("training.steps=1.5", InvalidValueError, "training.steps is 1.5"),
        ("training.steps=true", InvalidValueError, "training.steps is true"),
        ("training.steps=0", InvalidValueError, "training.steps is 0 .* greater than 0"),
        ("training.base_lr=.inf", InvalidValueError, "training.base_lr is .inf .* must be a finite number"),
        ("training.base_lr=" + "9" * 400, InvalidValueError, "training.base_lr is a number of more than 100 digits"),
        ("model.drop_path=1.0", InvalidValueError, "must be a number of at least 0 and less than 1"),
        ("model.arch=vit_x", InvalidValueError, "must be one of vit_s, vit_b, vit_l, vit_g, custom. "),
        ("model.arch=[1]", InvalidValueError, "must be one of vit_s, vit_b, vit_l, vit_g, custom. "),
        ("model.arch=custom", MissingKeyError, r"model.embed_dim is not set: width of a token \(and 2 more problems\)"),
        ("model.heads=5", InvalidValueError, "model.embed_dim 384 is not a multiple of model.heads 5"),
        (
            "augmentation.local_px=99",
            InvalidValueError,
            "local_px 99 is not a multiple .* Set augmentation.local_px to 98",
        ),
        ("augmentation.global_scale=[1]", InvalidValueError, "must be a list of 2 values, each a number"),
        ("augmentation.global_scale=[1, 0.5]", InvalidValueError, "must be two shares of the area"),
        ("objective.mask_ratio=[0.5, 0.1]", InvalidValueError, "must be two shares of the patches"),
        ("name=Über", InvalidValueError, "name is Über|name is "),
        ("name=" + "a" * 500, InvalidValueError, "name is a{80}… "),
        ("root=''", InvalidValueError, 'root is "" .* text that is not empty'),
        ("kind=pretain", InvalidValueError, "kind is pretain .* one of pretrain, adapt, distill, evaluate"),
        ("kind=[a]", InvalidValueError, "kind is .* one of pretrain, adapt, distill, evaluate"),
        ("training.global_batch=100", IndivisibleBatchError, "global_batch 100 .*slot_batch 64. Set .* to 128"),
        (
            "scaling.min_workers=2",
            InvalidValueError,
            "scaling.min_workers is 2, but scaling.workers is 1. Set .* 1",
        ),
        ("scaling.min_workers=0", InvalidValueError, "scaling.min_workers is 0 .* greater than 0"),
        ("scaling.wait_minutes=0", InvalidValueError, "scaling.wait_minutes is 0 .* greater than 0"),
        ("scaling.workers=33", TooManyWorkersError, "33 workers .* 32 slots .* at most 32"),
    ],
)
def test_load_recipe__names_key_value_rule_and_way_out(
    file: Path, override: str, error: type[ConfigError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load(file, PRETRAIN, override)
    assert len(str(caught.value).splitlines()) == 1
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            PRETRAIN.replace("training", "trainng"),
            UnknownKeyError,
            r"trainng.steps \(r.yaml:5\)\. .* is training.steps",
        ),
        (PRETRAIN + "sed: 3\n", UnknownKeyError, r"unknown key sed \(r.yaml:8\)\. The nearest key is seed"),
        (PRETRAIN + "sed: 3\nscalng: 1\n", UnknownKeyError, r"unknown key sed .*\(and 1 more problem\)"),
        (PRETRAIN + "sed: 3\nroot: 3\n", UnknownKeyError, r"unknown key sed .*\(and 1 more problem\)"),
        (
            PRETRAIN + "seed: -1\nroot: 3\n",
            InvalidValueError,
            r"root is 3 \(r.yaml:9\).*1 more.* Correct it in r.yaml:9",
        ),
        (PRETRAIN + "scaling: 3\n", InvalidValueError, r"scaling is 3 \(r.yaml:8\), but it is a section"),
        (PRETRAIN + "seed: {a: 1}\n", InvalidValueError, r"seed is {a: 1} \(r.yaml:8\), but must be a whole number"),
        (
            "kind: pretrain\nname: a\ndataset: {name: d}\n",
            MissingKeyError,
            "training.steps is not set: optimizer steps",
        ),
        ("name: demo\n", MissingKeyError, "r.yaml does not say its kind. .* one of pretrain, adapt, distill, evaluate"),
        ("kid: pretrain\n", UnknownKeyError, r"unknown key kid \(r.yaml:1\). The nearest key is kind"),
        (
            "kind: adept\n",
            InvalidValueError,
            r"kind is adept \(r.yaml:1\), but must be one of pretrain, adapt, distill, evaluate",
        ),
        (EVALUATE + "knn: {neighbours: [10, 0]}\n", InvalidValueError, "at least 1 value, each a whole number greater"),
        (EVALUATE + "knn: {neighbours: []}\n", InvalidValueError, r"knn.neighbours is \[\] \(r.yaml:6\)"),
    ],
)
def test_load_recipe__names_the_line_of_the_file(file: Path, text: str, error: type[ConfigError], message: str) -> None:
    with pytest.raises(error, match=message):
        load(file, text)


def test_load_recipe__names_the_environment_variable(file: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"seed is x \(environment HELIOSTAT__SEED\).* unset HELIOSTAT__SEED"):
        load(file, PRETRAIN, HELIOSTAT__SEED="x")
    with pytest.raises(UnknownKeyError, match=r"unknown key sed \(environment HELIOSTAT__SED\)"):
        load(file, PRETRAIN, HELIOSTAT__SED="x")


def test_load_recipe__files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RecipeNotFoundError, match=r"missing\.yaml does not exist"):
        load_recipe(tmp_path / "missing.yaml", [], {})
    with pytest.raises(RecipeNotFoundError, match="is a folder"):
        load_recipe(tmp_path, [], {})
    with pytest.raises(RecipeNotFoundError, match="cannot be read"):
        load_recipe("a\0b", [], {})
    with pytest.raises(RecipeNotFoundError, match="cannot be read"):
        load_recipe("a" * 5000, [], {})
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeSyntaxError, match="is not UTF-8 text"):
        load_recipe(tmp_path / "binary.yaml", [], {})


@pytest.mark.skipif(sys.platform != "linux", reason="an endless file")
def test_load_recipe__reads_no_more_than_its_limit() -> None:
    with pytest.raises(RecipeSyntaxError, match="larger than"):
        load_recipe("/dev/zero", [], {})


NUMBERS = st.floats(1e-6, 0.999) | st.integers(1, 10**6)
OVERRIDES = st.one_of(
    st.tuples(st.sampled_from(["training.base_lr", "training.clip_norm", "objective.koleo_weight"]), NUMBERS),
    st.tuples(st.sampled_from(["training.steps", "seed", "checkpoint.keep_last"]), st.integers(1, 10**12)),
    st.tuples(st.just("root"), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)),
    st.tuples(st.just("augmentation.local_scale"), st.lists(st.floats(1e-3, 1), min_size=2, max_size=2).map(sorted)),
)


@reuses_the_folder
@given(OVERRIDES)
def test_load_recipe__any_override_is_the_value_that_is_shown(file: Path, override: tuple[str, object]) -> None:
    key, value = override
    shown = show_value(value)
    loaded = load(file, PRETRAIN, f"{key}={shown}")
    assert values_of(loaded.recipe)[key] == value
    assert loaded.origins[key] == "--set"
    again = load(file, PRETRAIN, f"{key}={show_value(values_of(loaded.recipe)[key])}")
    assert again.recipe == loaded.recipe


def outcome(file: Path, text: str, override: str) -> str | None:
    """The error, checked to be one printable line of ours; any other exception is a failed test."""
    try:
        load(file, text, *([override] if override else []))
    except HeliostatError as error:
        assert len(str(error).splitlines()) == 1
        return str(error)
    return None


KEYS = [key for model in KINDS.values() for key in keys_of(model)]
HOSTILE = """model:|  arch: [1]|  heads: 0|a: &a|b: *a|  - x|? |---|{|}|[|]|!!int 'x'|!!set {a}|seed: 1e400|<<: *a"""
PIECES = st.sampled_from(
    [*PRETRAIN.splitlines(), *EVALUATE.splitlines(), *HOSTILE.split("|"), "\t", "'", '"', "%", "@"]
)


@reuses_the_folder
@given(
    text=st.lists(PIECES | st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=12).map("\n".join)
)
def test_load_recipe__any_text_loads_or_fails_in_one_line(file: Path, text: str) -> None:
    outcome(file, text, "")


@reuses_the_folder
@given(
    key=st.sampled_from(KEYS), value=st.text(max_size=12) | NUMBERS.map(str) | st.sampled_from(["[[1]]", "1e999", "-0"])
)
def test_load_recipe__any_override_loads_or_fails_in_one_line(file: Path, key: str, value: str) -> None:
    outcome(file, PRETRAIN, f"{key}={value}")

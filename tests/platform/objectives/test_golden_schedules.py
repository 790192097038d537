"""Schedules and parameter groups against the published code."""

import pytest
from support.golden import GOLDEN, close

from heliostat.config.model import ModelConfig
from heliostat.config.objective import ObjectiveConfig
from heliostat.config.training import TrainingConfig
from heliostat.objectives.groups import GroupRule, rule_of
from heliostat.objectives.schedules import values_at

MODEL = ModelConfig.model_validate({})
TRAINING = {
    "ssl_default_2048": TrainingConfig(steps=125_000, slot_batch=64),
    "vitg14_3072": TrainingConfig(
        steps=625_000,
        global_batch=3072,
        slot_batch=12,
        base_lr=2e-4,
        warmup_steps=100_000,
        weight_decay_end=0.2,
        ema_momentum=0.994,
        layer_decay=1.0,
    ),
}
BACKBONE = GOLDEN["param_groups_vits_decay0.9"]
PROTOTYPES = GroupRule("dino_head", 1.0, decays=True, is_prototypes=True)


@pytest.mark.parametrize("recipe", TRAINING)
def test_values_at__equal_the_published_schedules(recipe: str) -> None:
    expected, training = GOLDEN["schedules"][recipe], TRAINING[recipe]
    assert training.steps == expected["total_iters"]
    values = [values_at(step, training, ObjectiveConfig()) for step in expected["iters"]]
    found = {
        "lr": [value.lr for value in values],
        "wd": [value.weight_decay for value in values],
        "mom": [value.ema_momentum for value in values],
        "teacher_temp": [value.teacher_temperature for value in values],
        "last_layer_lr": [PROTOTYPES.lr(value) for value in values],
    }
    for name, series in found.items():
        # Up to the rounding of float64: numpy and math order a cosine's operations differently.
        assert series == pytest.approx(expected[name], rel=1e-12, abs=0), name


@pytest.mark.parametrize("name", BACKBONE)
def test_rule_of__equals_the_published_factors_of_a_backbone(name: str) -> None:
    rule = rule_of(f"backbone.{name}", MODEL, TRAINING["ssl_default_2048"])
    close([rule.lr_factor, float(rule.decays)], BACKBONE[name])
    assert not rule.is_prototypes


def test_rule_of__is_the_same_for_blocks_in_chunks() -> None:
    assert GOLDEN["param_groups_chunked_same"]
    training = TRAINING["ssl_default_2048"]
    for block in range(12):
        whole = rule_of(f"backbone.blocks.{block}.norm1.weight", MODEL, training)
        assert rule_of(f"backbone.blocks.{block // 3}.{block}.norm1.weight", MODEL, training) == whole


@pytest.mark.parametrize("head", ["dino_head", "ibot_head"])
@pytest.mark.parametrize("name", GOLDEN["param_groups_head"])
def test_rule_of__equals_the_published_factors_of_a_head(head: str, name: str) -> None:
    factor, decay, is_prototypes = GOLDEN["param_groups_head"][name]
    rule = rule_of(f"{head}.{name}", MODEL, TRAINING["ssl_default_2048"])
    assert rule == GroupRule(head, factor, bool(decay), is_prototypes)

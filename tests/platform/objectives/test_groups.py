import pytest
import torch
from support.worlds import tiny_recipe

from heliostat.config.adapt import AdaptRecipe
from heliostat.config.convnext import ConvNextConfig
from heliostat.config.model import ModelConfig
from heliostat.config.pretrain import PretrainRecipe
from heliostat.config.training import TrainingConfig
from heliostat.objectives.groups import GroupRule, parameter_groups, rule_of
from heliostat.objectives.networks import Network
from heliostat.objectives.schedules import values_at

TRAINING = TrainingConfig(steps=125_000, slot_batch=64)
MODEL = ModelConfig.model_validate({})


def test_rule_of__registers_belong_to_the_tokens() -> None:
    assert rule_of("backbone.register_tokens", MODEL, TRAINING) == rule_of("backbone.cls_token", MODEL, TRAINING)


def test_group_rule__prototypes_wait_and_others_do_not() -> None:
    recipe = tiny_recipe(freeze_prototypes_steps=3, warmup_steps=0, global_batch=1024, slot_batch=64)
    early, late = (values_at(step, recipe.training, recipe.objective) for step in (2, 3))
    prototypes = GroupRule("dino_head", 1.0, decays=True, is_prototypes=True)
    assert (prototypes.lr(early), prototypes.lr(late)) == (0.0, late.lr)
    assert prototypes.weight_decay(early) == early.weight_decay > 0
    bias = GroupRule("backbone", 0.25, decays=False, is_prototypes=False)
    assert (bias.lr(early), bias.weight_decay(early)) == (early.lr / 4, 0.0)


def test_parameter_groups__hold_every_parameter_once_by_its_rule() -> None:
    recipe = PretrainRecipe.model_validate(
        {"kind": "pretrain", "name": "r", "dataset": {"name": "d"}, "training": {"steps": 10}}
    )
    with torch.device("meta"):
        network = Network(recipe)
    groups = parameter_groups(network, MODEL, recipe.training)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(names)
    for group in groups:
        found = {rule_of(names[id(parameter)], MODEL, recipe.training) for parameter in group["params"]}
        assert found == {group["rule"]}
    rules = [group["rule"] for group in groups]
    assert rules == sorted(set(rules))
    assert {rule.sub_module for rule in rules} == set(network.sub_modules)
    # Of each of the 12 blocks what decays and what does not; the patch embedding likewise; tokens; the last norm.
    # Of each head the same two, and the prototypes.
    assert len(groups) == 12 * 2 + 2 + 1 + 1 + 2 * 3


@pytest.mark.parametrize(
    ("name", "layer", "decays"),
    [
        ("downsample_layers.0.0.weight", 0, True),
        ("downsample_layers.0.0.bias", 0, False),
        ("downsample_layers.0.1.weight", 0, False),  # a norm without a name
        ("stages.0.0.dwconv.weight", 1, True),
        ("stages.0.2.pwconv1.weight", 3, True),
        ("downsample_layers.1.0.weight", 4, False),
        ("downsample_layers.1.1.weight", 4, True),
        ("stages.1.0.norm.weight", 4, False),
        ("stages.2.8.gamma", 15, False),
        ("downsample_layers.3.1.weight", 16, True),
        ("stages.3.2.pwconv2.weight", 18, True),
        ("norm.weight", 19, False),
    ],
)
def test_rule_of__counts_blocks_through_the_stages(name: str, layer: int, decays: bool) -> None:
    model = ConvNextConfig.model_validate({"arch": "convnext_t"})
    rule = rule_of(f"backbone.{name}", model, TRAINING)
    assert rule.lr_factor == pytest.approx(0.9 ** (19 - layer))
    assert rule.decays == decays


def test_group_rule__blocks_begin_to_learn_from_the_last_one_and_heads_at_once() -> None:
    tree = tiny_recipe().model_dump()
    training = {**tree["training"], "warmup_steps": 0, "freeze_backbone_steps": 2, "unfreeze_steps": 3}
    tree |= {"kind": "adapt", "init_from": {"run": "tiny"}, "training": training}
    recipe = AdaptRecipe.model_validate(tree)
    names = [
        "backbone.cls_token",
        "backbone.blocks.0.norm1.weight",
        "backbone.blocks.1.mlp.fc1.weight",
        "backbone.norm.weight",
        "dino_head.mlp.0.weight",
    ]
    rules = [rule_of(name, recipe.model, recipe.training) for name in names]
    learning = []
    for step in range(6):
        values = values_at(step, recipe.training, recipe.objective)
        learning.append("".join("x" if rule.lr(values) else "." for rule in rules))
    assert learning == ["....x", "....x", "...xx", "..xxx", ".xxxx", "xxxxx"]
    assert len(set(rules)) == len({rule.depth for rule in rules[:-1]}) + 1

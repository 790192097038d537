import pytest
import torch
from support.worlds import tiny_recipe

from heliostat.config.pretrain import PretrainRecipe, TrainingConfig
from heliostat.objectives.networks import SUB_MODULES, Network
from heliostat.training.groups import GroupRule, parameter_groups, rule_of
from heliostat.training.schedules import values_at

TRAINING = TrainingConfig(steps=125_000, slot_batch=64)

# Of the published code for ViT-S and a decay of 0.9: factor on the learning rate, factor on the weight decay.
BACKBONE = {
    "cls_token": (0.25418658, 1),
    "pos_embed": (0.25418658, 1),
    "mask_token": (0.25418658, 1),
    "patch_embed.proj.weight": (0.05083732, 1),
    "patch_embed.proj.bias": (0.05083732, 0),
    "blocks.0.norm1.weight": (0.28242954, 0),
    "blocks.0.attn.qkv.weight": (0.28242954, 1),
    "blocks.0.attn.qkv.bias": (0.28242954, 0),
    "blocks.0.ls1.gamma": (0.28242954, 0),
    "blocks.0.mlp.fc2.weight": (0.28242954, 1),
    "blocks.11.norm2.bias": (0.9, 0),
    "blocks.11.attn.proj.weight": (0.9, 1),
    "blocks.11.ls2.gamma": (0.9, 0),
    "norm.weight": (1, 0),
    "norm.bias": (1, 0),
}
HEAD = {
    "mlp.0.weight": (1, 1, False),
    "mlp.0.bias": (1, 0, False),
    "mlp.4.weight": (1, 1, False),
    "last_layer.weight_g": (1, 1, True),
    "last_layer.weight_v": (1, 1, True),
}


@pytest.mark.parametrize("name", BACKBONE)
def test_rule_of__equals_the_published_factors_of_a_backbone(name: str) -> None:
    rule = rule_of(f"backbone.{name}", depth=12, training=TRAINING)
    factor, decays = BACKBONE[name]
    assert rule.lr_factor == pytest.approx(factor, abs=1e-8)
    assert (rule.sub_module, rule.decays, rule.is_prototypes) == ("backbone", bool(decays), False)


@pytest.mark.parametrize("head", ["dino_head", "ibot_head"])
@pytest.mark.parametrize("name", HEAD)
def test_rule_of__equals_the_published_factors_of_a_head(head: str, name: str) -> None:
    factor, decays, is_prototypes = HEAD[name]
    assert rule_of(f"{head}.{name}", 12, TRAINING) == GroupRule(head, factor, bool(decays), is_prototypes)


def test_rule_of__registers_belong_to_the_tokens() -> None:
    assert rule_of("backbone.register_tokens", 12, TRAINING) == rule_of("backbone.cls_token", 12, TRAINING)


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
    groups = parameter_groups(network, 12, recipe.training)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(names)
    for group in groups:
        found = {rule_of(names[id(parameter)], 12, recipe.training) for parameter in group["params"]}
        assert found == {group["rule"]}
    rules = [group["rule"] for group in groups]
    assert rules == sorted(set(rules))
    assert {rule.sub_module for rule in rules} == set(SUB_MODULES)
    # Of each of the 12 blocks what decays and what does not; the patch embedding likewise; tokens; the last norm.
    # Of each head the same two, and the prototypes.
    assert len(groups) == 12 * 2 + 2 + 1 + 1 + 2 * 3

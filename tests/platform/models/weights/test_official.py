import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.errors import IncompatibleCheckpointError
from heliostat.models.weights.official import backbone_names

BARE = [
    "cls_token",
    "pos_embed",
    "mask_token",
    "register_tokens",
    "patch_embed.proj.weight",
    "blocks.0.norm1.weight",
    "blocks.11.mlp.fc1.bias",
    "norm.bias",
]
HEADS = ["dino_head.mlp.0.weight", "dino_head.last_layer.weight_g", "ibot_head.mlp.4.bias"]

prefixes = st.lists(st.sampled_from(["module", "model", "teacher", "backbone", "state_dict"]), max_size=4).map(".".join)


@given(prefix=prefixes, chunk=st.none() | st.integers(0, 3))
def test_backbone_names__any_wrapping_leads_to_the_bare_names(prefix: str, chunk: int | None) -> None:
    names = BARE if chunk is None else [name.replace("blocks.", f"blocks.{chunk}.") for name in BARE]
    wrapped = [f"{prefix}.{name}" if prefix else name for name in names]
    assert backbone_names(wrapped, "f") == dict(zip(wrapped, BARE, strict=True))


def test_backbone_names__the_teacher_is_taken_and_heads_are_left_out() -> None:
    both = [f"model.{who}.backbone.{name}" for who in ("student", "teacher") for name in BARE]
    heads = [f"model.{who}.{name}" for who in ("student", "teacher") for name in HEADS]
    assert backbone_names([*both, *heads], "f") == {f"model.teacher.backbone.{name}": name for name in BARE}


def test_backbone_names__a_student_alone_is_taken() -> None:
    assert set(backbone_names([f"student.backbone.{name}" for name in BARE], "f").values()) == set(BARE)


def test_backbone_names__what_else_stands_beside_bare_names_is_kept_to_be_reported() -> None:
    assert backbone_names([*BARE, "head.weight", "dino_head.mlp.0.weight"], "f")["head.weight"] == "head.weight"
    assert "dino_head.mlp.0.weight" not in backbone_names([*BARE, *HEADS], "f")


def test_backbone_names__two_backbones_are_ambiguous() -> None:
    names = [f"{who}.{name}" for who in ("a", "b") for name in BARE]
    with pytest.raises(IncompatibleCheckpointError, match="holds 2 backbones, under 'a', 'b'"):
        backbone_names(names, "f")


@pytest.mark.parametrize("names", [[], ["layer1.conv.weight"], HEADS])
def test_backbone_names__no_backbone_is_an_error(names: list[str]) -> None:
    with pytest.raises(IncompatibleCheckpointError, match="f holds no DINOv2 backbone"):
        backbone_names(names, "f")

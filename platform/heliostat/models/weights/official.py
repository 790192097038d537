"""Names of the released DINOv2 files, and what training checkpoints and exports put around them.

Seen in the wild: bare names (hub); ``model.teacher.backbone.…`` beside the student and the heads (training);
``teacher.backbone.…`` beside heads (exported teacher); a ``module.`` anywhere; ``blocks.{chunk}.{i}.…`` where the
blocks were wrapped in chunks for FSDP.
"""

import re
from collections.abc import Iterable

from heliostat.errors import IncompatibleCheckpointError

_TOP_LEVEL = {
    "cls_token",
    "pos_embed",
    "mask_token",
    "register_tokens",
    "reg_token",  # timm's word for register_tokens
    "patch_embed",
    "blocks",
    "norm",
}
_HEADS = {"dino_head", "ibot_head"}
_CHUNKED = re.compile(r"blocks\.\d+\.(?=\d+\.)")


def backbone_names(names: Iterable[str], origin: str) -> dict[str, str]:
    """From each tensor of one backbone in a file to its released name; the teacher's where there are several.

    Args:
        names: All tensors of the file, nested dictionaries joined by dots.
        origin: The file, for messages.

    Raises:
        IncompatibleCheckpointError: there is no backbone in it, or several and no teacher among them.
    """
    bare = {name: ".".join(part for part in name.split(".") if part != "module") for name in names}
    prefix = _choose({_prefix(name) for name in bare.values()} - {None}, origin)
    inside = {name: rest for name, rest in ((name, _below(prefix, text)) for name, text in bare.items()) if rest}
    return {name: _CHUNKED.sub("blocks.", rest) for name, rest in inside.items() if rest.split(".")[0] not in _HEADS}


def _prefix(name: str) -> str | None:
    """What stands before the first part that belongs to a backbone; None for heads and other things."""
    parts = name.split(".")
    found = next((index for index, part in enumerate(parts) if part in _TOP_LEVEL), None)
    if found is None or _HEADS.intersection(parts[:found]):
        return None
    return ".".join(parts[:found])


def _below(prefix: str, name: str) -> str | None:
    if not prefix:
        return name
    return name[len(prefix) + 1 :] if name.startswith(f"{prefix}.") else None


def _choose(prefixes: set[str | None], origin: str) -> str:
    known = sorted(prefix for prefix in prefixes if prefix is not None)
    teachers = [prefix for prefix in known if "teacher" in prefix.split(".")]
    others = [prefix for prefix in known if "student" not in prefix.split(".")]
    chosen = teachers or others or known
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        fact = f"{origin} holds no DINOv2 backbone: no name in it has a part such as patch_embed or blocks"
        raise IncompatibleCheckpointError(fact, "Give a file with the weights of a backbone")
    listed = ", ".join(repr(prefix) for prefix in chosen[:10])
    raise IncompatibleCheckpointError(
        f"{origin} holds {len(chosen)} backbones, under {listed}", "Save the one you want in a file of its own"
    )

"""The same numbers from less memory."""

from typing import Any

import pytest
import torch
from support.backbones import ROTARY, small_backbone
from support.closed_form import det
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from heliostat.models.recompute import Recompute, recomputed
from heliostat.models.vit import VisionTransformer
from heliostat.objectives.masking import draw_drops

GROUPS = [det((4, 3, 70, 70), 1), det((6, 3, 28, 28), 2)]
DROPS = draw_drops(0, 0, 0, 3, (4, 6), 0.4)


class Kept(TorchDispatchMode):
    """Bytes of what operators made and somebody still holds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                reference = StorageWeakRef(storage)
                self._storages[reference.cdata] = (reference, storage.nbytes())
        return out

    def bytes(self) -> int:
        return sum(size for reference, size in self._storages.values() if not reference.expired())


def loss_of(model: VisionTransformer) -> Tensor:
    wanted = [torch.arange(0, 100, 3), torch.arange(0)]
    outputs = model(GROUPS, drops=DROPS, wanted=wanted)
    return sum(
        (x.square().mean() for each in outputs for x in (each.cls_BD, each.patches_MD) if len(x)), torch.zeros(())
    )


def losses_and_gradients(model: VisionTransformer, mode: Recompute, precision: str) -> list[Tensor]:
    model.prepare(mode, compiles=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = loss_of(model)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [loss.detach(), *(gradient for gradient in found if gradient is not None)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", [{}, {"ffn": "swiglu"}, ROTARY])
def test_recompute__any_mode_gives_the_same_numbers(variant: dict[str, Any], precision: str) -> None:
    model = small_backbone(depth=3, **variant)
    expected = losses_and_gradients(model, "none", precision)
    assert len(expected) > 20
    for mode in ("selective", "full"):
        found = losses_and_gradients(model, mode, precision)
        for mine, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, reference, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("variant", [{}, {"ffn": "swiglu"}, ROTARY])
def test_recompute__more_of_it_keeps_less(variant: dict[str, Any]) -> None:
    model = small_backbone(depth=3, **variant)
    kept: dict[str, int] = {}
    for mode in ("none", "selective", "full"):
        model.prepare(mode, compiles=False)
        with Kept() as memory:
            loss = loss_of(model)
        kept[mode] = memory.bytes()
        assert loss.requires_grad
        del loss
    assert kept["selective"] < 0.75 * kept["none"]
    assert kept["full"] < 0.6 * kept["selective"]


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recompute__selective_does_not_repeat_products(mode: Recompute) -> None:
    """Calls of an operator that is expensive, in a forward and a backward pass."""
    x, weight = det((8, 8), 1).requires_grad_(), det((8, 8), 2).requires_grad_()
    calls = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Counting():  # type: ignore[no-untyped-call]
        recomputed(lambda a, b: torch.sin(a @ b), mode)(x, weight).sum().backward()
    # One product forward and two backward.
    assert calls.count("mm") == (3 if mode == "selective" else 4)


def test_recompute__without_gradients_nothing_is_prepared() -> None:
    def function(x: Tensor) -> Tensor:
        return x

    assert recomputed(function, "none") is function
    with torch.no_grad():
        assert recomputed(function, "full") is function


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's compiler itself
def test_prepare__a_compiled_block_decides_by_itself_what_is_cheap() -> None:
    expected: dict[Recompute, Recompute] = {"none": "none", "selective": "none", "full": "full"}
    for mode, effect in expected.items():
        model = small_backbone()
        model.prepare(mode, compiles=True)  # compiles at the first call, which is not made here
        assert model.recompute == effect

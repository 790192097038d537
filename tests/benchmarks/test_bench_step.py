import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.slots import masks_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench_step import BySize, measure_gpu, measure_sizes, result
from frame import Spread
from heliostat.objectives import single_process_step
from heliostat.objectives.networks import Network
from reference_step import ReferenceStep
from step_figures import BARS, Figures, judged
from step_processes import WorkerFailedError, plain_environment, platform_environment, workers
from step_sizes import PRECISIONS, SIZES, Precision, Size, prepared_slot, step_flops, step_product
from step_turns import (
    DisagreementError,
    Found,
    Plan,
    Progress,
    compare,
    largest_difference,
    platform_plan,
    standard_candidates,
)
from step_worker import Ended, Job, Products, Ran, Started, ours, reference

TINY = replace(SIZES["demo"], embed_dim=32, depth=2, heads=2, images=4, prototypes=48, head_hidden=32, steps_per_turn=1)
SMALL = replace(SIZES["demo"], depth=2, images=16, steps_per_turn=1)
"""Large enough that bf16's rounding does not grow within a few steps."""
SHARED = replace(TINY, ibot_head="shared", centring="softmax")
ENVIRONMENT = platform_environment("cpu") | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("drop_path", [0.0, 0.3])
@pytest.mark.parametrize(
    ("head", "centring"),
    [("separate", "sinkhorn_knopp"), ("shared", "softmax"), ("separate", "softmax"), ("shared", "sinkhorn_knopp")],
)
def test_reference__computes_what_the_product_computes(head: str, centring: str, drop_path: float) -> None:
    size = replace(TINY, ibot_head=head, centring=centring, drop_path=drop_path)
    mine, theirs = ours(Job("ours", size, "fp32")), reference(Job("reference", size, "fp32"))
    for _ in range(4):  # a centre that is not moved shows from the second step on
        assert largest_difference(mine.run(1), theirs.run(1)) < 1e-4


def test_reference__moves_the_centres_as_the_product_does() -> None:
    recipe = replace(SHARED, ibot_head="separate").recipe("fp32")
    weights = Network(recipe)
    weights.init_weights(recipe.seed)
    mine, theirs = single_process_step(recipe), ReferenceStep(recipe, weights.state_dict())
    slot = prepared_slot(recipe)
    for step in range(3):
        mine.run(step, [slot])
        theirs.run(step, slot)
    for name, centre_K in mine.replicated_state()["centre"].items():
        assert centre_K.norm() > 0.01
        torch.testing.assert_close(theirs.centres[name], centre_K, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [TINY, SHARED, replace(TINY, drop_path=0.0)], ids=["separate", "shared", "no drops"])
def test_step_flops__are_those_that_torch_counts_in_the_reference(size: Size) -> None:
    stepper = reference(Job("reference", size, "fp32"))
    # The counter does not know the fused attention of CPUs; the plain one is made of products that it knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stepper.run(1)
    assert step_flops(size, prepared_slot(size.recipe("fp32"))) == counter.get_total_flops()


@pytest.mark.parametrize("name", SIZES)
def test_sizes__have_a_recipe_and_a_slot_on_the_device(name: str) -> None:
    size = replace(SIZES[name], images=2, prototypes=64)
    recipe = size.recipe("bf16")
    slot = prepared_slot(recipe, "meta")
    tensors = [slot.global_crops, slot.local_crops, masks_of(slot)]
    assert slot.drops is not None
    tensors += [index for block in slot.drops for branch in block for index in branch]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert recipe.training.slots == 1
    rows, inputs, outputs = step_product(size)
    assert (inputs, outputs) == (recipe.model.embed_dim, recipe.model.ffn_hidden)
    kept = slot.drops[0][1]
    assert rows == sum(
        len(index) * ((px // size.patch_px) ** 2 + 1)
        for index, px in zip(kept, (size.global_px, size.local_px), strict=True)
    )


@pytest.mark.parametrize(("precision", "names"), [("fp32", 4), ("bf16", 2)])
def test_products__tell_a_rate_of_every_operator_and_shape(precision: Precision, names: int) -> None:
    rates = Products(Job("gemm", TINY, precision)).run(1).rates
    assert len(rates) == names and {"matmul_square", "matmul_step"} <= set(rates)
    assert all(rate > 0 for rate in rates.values())


def test_worker__speaks_its_protocol_and_is_gone_afterwards() -> None:
    jobs = {"ours": Job("ours", SHARED, "fp32"), "reference": Job("reference", SHARED, "fp32")}
    with workers(jobs, ENVIRONMENT) as running:
        pids = [worker.pid for worker in running.values()]
        started = {name: worker.started() for name, worker in running.items()}
        assert all(each.threads == 1 and each.before_gib > 0 for each in started.values())
        parameters = sum(each.numel() for each in _parameters(SHARED))
        assert {each.state_gib for each in started.values()} == {5 * 4 * parameters / 2**30}
        ran = {name: worker.run(2) for name, worker in running.items()}
        assert all(each.seconds > 0 for each in ran.values())
        assert set(ran["ours"].norms) == {"backbone", "dino_head"}
        assert largest_difference(ran["ours"], ran["reference"]) < 1e-4
        ended = running["ours"].quit()
        assert ended.peak_gib > started["ours"].before_gib
    assert not any(_is_alive(pid) for pid in pids)


def _parameters(size: Size) -> list[torch.nn.Parameter]:
    return list(Network(size.recipe("fp32")).parameters())


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_workers__are_killed_on_an_error_even_while_they_compute() -> None:
    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt), workers({"ours": Job("ours", TINY, "fp32")}, ENVIRONMENT) as running:
        pids += [worker.pid for worker in running.values()]
        running["ours"]._ask("run 1000000")
        raise KeyboardInterrupt
    assert pids and not any(_is_alive(pid) for pid in pids)


def test_worker__that_fails_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = {"broken": Job("ours", replace(TINY, heads=5), "fp32")}
    failure = pytest.raises(WorkerFailedError, match="the worker broken ended with status 1")
    with failure, workers(jobs, ENVIRONMENT) as running:
        running["broken"].started()
    assert "heads" in capfd.readouterr().err


def test_worker__ends_when_nobody_asks_any_more() -> None:
    command = [sys.executable, str(Path(__file__).with_name("step_worker.py")), Job("ours", TINY, "fp32").to_json()]
    done = subprocess.run(command, input="", capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1


def test_environments__differ_in_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    plain, own = plain_environment(), platform_environment("cpu")
    assert not any(name.startswith("MALLOC") for name in [*plain, *platform_environment("cuda")])
    assert "OMP_WAIT_POLICY" not in plain and own["OMP_WAIT_POLICY"] == "PASSIVE"
    assert own["MALLOC_MMAP_MAX_"] == "0" and "MALLOC_ARENA_MAX" not in own
    assert plain["PATH"] == own["PATH"] == os.environ["PATH"]


GOOD = Ran(1.0, {"loss": 2.0}, {"backbone": 1.0})


@pytest.mark.parametrize(
    ("mine", "precision", "agrees"),
    [
        (GOOD, "fp32", True),
        (Ran(1.0, {"loss": 2.001, "gram": 0.0}, {"backbone": 1.0}), "fp32", True),
        (Ran(1.0, {"loss": 2.01}, {"backbone": 1.0}), "fp32", False),
        (Ran(1.0, {"loss": 2.01}, {"backbone": 1.0}), "bf16", True),
        (Ran(1.0, {"loss": 2.0}, {"backbone": 0.9}), "bf16", False),
        (Ran(1.0, {"loss": float("nan")}, {"backbone": 1.0}), "bf16", False),
        (Ran(1.0, {"loss": 2.0}, {}), "bf16", False),
    ],
)
def test_compare__refuses_what_differs(mine: Ran, precision: Precision, agrees: bool) -> None:
    plan = platform_plan("tiny", TINY, precision, 1)
    told = {"ours": [GOOD, mine], "reference": [GOOD, GOOD], "gemm": [GOOD]}
    if agrees:
        assert compare(told, plan) is not None
        return
    with pytest.raises(DisagreementError, match=f"tiny {precision}, step 1: ours tells"):
        compare(told, plan)


@pytest.mark.parametrize(
    ("precision", "reference_fraction", "is_void"),
    [
        ("fp32", 0.45, False),
        ("fp32", 0.4499, True),
        ("bf16", 0.35, False),
        ("bf16", 0.3499, True),
        ("bf16", 0.9, False),
    ],
)
def test_judged__voids_a_ratio_over_a_straw_man(precision: Precision, reference_fraction: float, is_void: bool) -> None:
    ratio, reason = judged(1.5, reference_fraction, precision)
    assert ratio == (None if is_void else 1.5)
    assert (reason is not None and f"{precision}_speed is void" in reason) == is_void


def made_up(size: Size, precision: Precision, reference_s: float, peak_gib: float) -> Figures:
    plan = Plan("made up", size, precision, standard_candidates(size), {}, runs=2)
    seconds = {"ours": Spread((1.0, 2.0)), "reference": Spread((reference_s, 2 * reference_s))}
    # 100 and 50 GFLOP/s by matmul; twice that by oneDNN. A step of 90 GFLOP.
    rates = {"matmul_square": Spread((100.0, 50.0)), "matmul_step": Spread((80.0, 40.0))}
    rates["onednn_square"] = Spread((200.0, 100.0))
    started = dict.fromkeys(seconds, Started(0.2, 1.0, 2))
    told = {name: [GOOD] for name in seconds}
    ended = {"ours": Ended(peak_gib), "reference": Ended(8.0)}
    found = Found(plan, 90 * 10**9, seconds, rates, told, started, ended)
    return Figures(found, replace_plain(found))


def replace_plain(found: Found) -> Found:
    return Found(found.plan, found.flops, {"reference": Spread((4.0,))}, {}, {}, found.started, found.ended)


def by_size(reference_s: float) -> BySize:
    def both(size: Size) -> dict[Precision, Figures]:
        return {precision: made_up(size, precision, reference_s, 3.0) for precision in PRECISIONS}

    return {"vit_s14_65k": both(SIZES["vit_s14_65k"]), "vit_s14_131k": both(SIZES["vit_s14_131k"])}


def test_result__has_ratios_floor_and_shares() -> None:
    found = result(by_size(reference_s=1.5), "vit_s14_65k", None, "No GPU.")
    assert found.ratios == {"fp32_speed": 1.5, "bf16_speed": 1.5, "memory_131k": 3 / 8}
    assert found.floor_fraction == pytest.approx(0.45)  # 90 GFLOP/s of 200
    assert found.details["gemm_fraction"]["ours_fp32"] == 0.9
    assert found.details["gemm_fraction"]["reference_bf16"] == 0.6
    assert found.details["fastest_gemm_fraction"]["reference_fp32"] == 0.3
    assert found.details["reference_default_allocator_fp32"] == 2.0  # 8 images in 4 s
    memory = found.details["sizes"]["vit_s14_131k"]["bf16"]["memory"]
    assert memory["ours"] == {"peak_gib": 3.0, "before_gib": 0.2, "floor_gib": 1.2}
    assert memory["reference_default_allocator"]["peak_gib"] == 8.0
    assert found.details["gpu"] is None and found.details["notes"][-1] == "No GPU."
    assert found.to_json()


def test_result__of_a_slow_reference_is_void() -> None:
    found = result(by_size(reference_s=2.5), "vit_s14_65k", None, "")  # 0.36 of matmul's rate
    assert found.ratios["fp32_speed"] is None
    assert found.ratios["bf16_speed"] == 2.5
    assert BARS["bf16"] < 0.36 < BARS["fp32"]
    assert any("fp32_speed is void" in note for note in found.details["notes"])


def test_measure_sizes__gives_a_result_without_ratios_of_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = result(measure_sizes({"demo": (SMALL, 1)}, ["fp32"]), "demo", None, "Quick.")
    assert found.ratios == {"fp32_speed": None, "bf16_speed": None, "memory_131k": None}
    assert found.floor_fraction is None
    details = found.details["sizes"]["demo"]["fp32"]
    assert set(details["memory"]) == {"ours", "reference", "reference_default_allocator"}
    assert all(each["peak_gib"] > each["before_gib"] > 0 for each in details["memory"].values())
    assert all(share > 0 for share in details["gemm_fraction"].values())
    assert details["threads"] == 1
    assert found.details["measured"]["demo fp32: speed"]["runs"] == 1
    assert found.to_json()


def test_measure_gpu__compares_compiled_with_the_same_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # On the CPU, with a "compiled" candidate that is not: what runs on a GPU machine apart from the device.
    found = measure_gpu(SMALL, SMALL, device="cpu", runs=1)
    assert set(found["images_per_s"]) == set(found["memory"]) == {"ours", "reference", "ours_compiled"}
    assert set(found["gemm_fraction"]) == {"ours", "reference", "ours_compiled"}
    assert found["largest_difference_compiled"] == found["largest_difference"] > 0


def test_progress__tells_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    progress = Progress(total=10.0, clock=lambda: now[0])
    progress.did("soon", 0.5)
    now[0] = 130.0
    progress.did("later", 2.0)
    assert capsys.readouterr().err == "  later; 0:30, ETA 1:30\n"

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from bench_step import SIZES, count_flops, largest_difference, measure_size, ours, prepared_slot, reference

TINY = replace(SIZES["demo"], embed_dim=32, depth=2, heads=2, images=4, prototypes=48, head_hidden=32, steps_per_turn=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("drop_path", [0.0, 0.3])
def test_reference__computes_what_the_product_computes(drop_path: float) -> None:
    recipe = replace(TINY, drop_path=drop_path).recipe("fp32")
    slot = prepared_slot(recipe)
    mine, theirs = ours(recipe, slot), reference(recipe, slot)
    for _ in range(3):
        assert largest_difference(mine.run(1), theirs.run(1)) < 1e-4


def test_count_flops__counts_every_product_attention_included() -> None:
    size = replace(TINY, drop_path=0.0)
    recipe = size.recipe("fp32")
    slot = prepared_slot(recipe)
    width, images, crops = size.embed_dim, size.images, (2 * size.images, size.local_count * size.images)

    def backbone(count: int, px: int, passes: int, patch_passes: int) -> int:
        patches = (px // size.patch_px) ** 2
        tokens = patches + 1
        block = count * (tokens * 12 * width**2 + 2 * tokens**2 * width)
        return passes * size.depth * block + patch_passes * count * patches * 3 * size.patch_px**2 * width

    def head(vectors: int, passes: int) -> int:
        hidden, bottleneck = size.head_hidden, size.head_bottleneck
        inner = width * hidden + hidden**2 + hidden * bottleneck + bottleneck * size.prototypes
        return passes * vectors * inner

    masked = int(slot.masks.sum())
    # Three passes with a gradient (forward, to inputs, to weights), one without; pixels need no gradient.
    student = backbone(crops[0], size.global_px, 3, 2) + backbone(crops[1], size.local_px, 3, 2)
    student += head(sum(crops) + masked, 3) + 2 * images**2 * width
    teacher = backbone(crops[0], size.global_px, 1, 1) + head(crops[0] + masked, 1)
    assert count_flops(recipe, slot) == 2 * (student + teacher)


def test_measure_size__gives_a_result() -> None:
    result = measure_size(TINY, runs=1)
    assert set(result.ratios) == {"fp32_speed", "bf16_speed", "memory_131k"}
    assert result.ratios["memory_131k"] is None
    assert result.floor_fraction is not None and result.floor_fraction > 0
    assert result.details["threads"] == torch.get_num_threads()
    assert result.to_json()

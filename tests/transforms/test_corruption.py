"""Corruptions: patches change places without loss, and blocks are masked in exact numbers."""

from math import prod

import pytest
import torch

from medcl_monai.transforms.corruption import BlockMask, Corruption, PatchSwap, patch_corners

CASES = [
    ((48, 48), 5, 10, 0.217014),
    ((64, 64), 8, 10, 0.3125),
    ((64, 64), 8, 32, 1.0),
    ((48, 48, 48), 8, 20, 0.185185),
    ((64, 50), 6, 8, 0.18),
]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("size", "patch", "swaps", "share"), CASES)
def test_a_swap_moves_exactly_so_many_pixels_and_loses_none(size, patch, swaps, share):
    x = torch.rand(3, 2, *size, generator=seeded(0))
    swap = PatchSwap(patch, swaps)
    corners = swap.draw(3, size, seeded(1))
    corrupted, changed = swap.apply(x, corners)
    assert torch.equal(corrupted.flatten(2).sort(2).values, x.flatten(2).sort(2).values)
    assert changed.flatten(1).sum(1).tolist() == [2 * swaps * patch ** len(size)] * 3
    assert float(changed.double().mean()) == pytest.approx(share, abs=1e-6)
    assert torch.equal((corrupted != x).any(1, keepdim=True), changed)
    assert torch.equal(swap.apply(corrupted, corners)[0], x)  # the same draw twice restores
    for channel in range(2):  # all channels of a sample alike
        alone = swap.apply(x[:, channel : channel + 1], corners)[0]
        assert torch.equal(alone[:, 0], corrupted[:, channel])


def test_the_first_half_of_the_patches_changes_places_with_the_second():
    x = torch.arange(64.0).view(1, 1, 8, 8)
    corrupted, _ = PatchSwap(2, 1).apply(x, torch.tensor([[[0, 0], [4, 6]]]))
    assert torch.equal(corrupted[0, 0, :2, :2], x[0, 0, 4:6, 6:])
    assert torch.equal(corrupted[0, 0, 4:6, 6:], x[0, 0, :2, :2])
    assert torch.equal(corrupted[0, 0, 2:4], x[0, 0, 2:4])


def test_a_seed_gives_the_same_corruption_and_samples_differ():
    x = torch.rand(4, 1, 48, 48)
    for corrupt in (PatchSwap(6, 5), BlockMask(6, 0.4), Corruption([PatchSwap(6, 3), BlockMask(6, 0.2)])):
        first, where = corrupt(x, seeded(2))
        assert torch.equal(first, corrupt(x, seeded(2))[0])
        assert not torch.equal(first, corrupt(x, seeded(3))[0])
        assert len({tuple(sample.flatten().tolist()) for sample in where}) == 4


def test_patches_do_not_overlap_and_reach_the_whole_sample():
    for size, patch, swaps, _ in CASES:
        corners = patch_corners(200, size, patch, 2 * swaps, seeded(0))
        distance = (corners[:, :, None] - corners[:, None]).abs().amax(-1)
        assert bool((distance + patch * torch.eye(2 * swaps, dtype=torch.long) >= patch).all())
        assert bool((corners >= 0).all())
        assert bool((corners + patch <= torch.tensor(size)).all())


def test_every_place_inside_is_covered_about_equally_often():
    size, patch = (48, 48), 5
    covered = torch.zeros(48 * 48)
    for seed in range(20):
        covered += PatchSwap(patch, 10)(torch.zeros(1000, 1, *size), seeded(seed))[1].flatten(1).float().sum(0)
    cell, grid = 10, 3  # the largest cells of which 20 fit with room to shift, rederived below
    while grid**2 < 20:
        cell -= 1
        grid = (48 - cell + 1) // cell
    inside = slice(48 - cell * grid, cell * grid)
    share = covered.view(48, 48)[inside, inside] / 20_000
    assert float((share / share.mean() - 1).abs().max()) < 0.25


def test_too_many_patches_are_refused_with_the_largest_number():
    message = "PatchSwap: 20 patches of 16 do not fit into 64x64 without overlap: at most 16"
    with pytest.raises(ValueError, match=message):
        PatchSwap(16, 10)(torch.zeros(1, 1, 64, 64))
    corrupted, changed = PatchSwap(16, 8)(torch.rand(1, 1, 64, 64))
    assert bool(changed.all())
    same, nothing = PatchSwap(16, 0)(corrupted)
    assert torch.equal(same, corrupted)
    assert not bool(nothing.any())


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("size", [(64, 64), (50, 35), (20, 16, 33)])
def test_exactly_so_many_whole_blocks_are_masked(size, ratio):
    x = torch.rand(5, 2, *size) + 1
    corrupted, changed = BlockMask(8, ratio, fill=-7.0)(x, seeded(0))
    blocks = prod(side // 8 for side in size)
    assert changed.flatten(1).sum(1).tolist() == [round(ratio * blocks) * 8 ** len(size)] * 5
    assert bool((corrupted[changed.expand_as(x)] == -7).all())
    assert torch.equal(corrupted[~changed.expand_as(x)], x[~changed.expand_as(x)])
    whole = changed[(..., *(slice(side // 8 * 8) for side in size))]
    for axis in range(2, whole.ndim):
        whole = whole.unflatten(axis, (-1, 8)).movedim(axis + 1, -1)
    by_block = whole.flatten(2 + len(size))
    assert torch.equal(by_block.any(-1), by_block.all(-1))


def test_a_sample_without_a_whole_block_is_refused_and_settings_are_checked():
    with pytest.raises(ValueError, match="BlockMask: a sample of 64x6 holds no block of side 8"):
        BlockMask(8)(torch.zeros(1, 1, 64, 6))
    for wrong in ({"patch": 0}, {"swaps": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PatchSwap(**wrong)
    for wrong in ({"block": 0}, {"ratio": 1.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BlockMask(**wrong)


def test_several_corruptions_tell_all_that_changed():
    x = torch.rand(2, 1, 32, 32) + 1
    corrupted, changed = Corruption([PatchSwap(4, 4), BlockMask(4, 0.3)])(x, seeded(0))
    assert torch.equal((corrupted != x), changed)
    assert torch.equal(Corruption([])(x)[0], x)

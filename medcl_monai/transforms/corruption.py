"""Corruptions of a batch that a network learns to undo: patches that change places, and masked blocks.

A corruption draws its random numbers on the CPU (`draw`) and then applies them on the device (`apply`), so a seed gives
the same corruption on every device, and the same draw can be applied again.
"""

from collections.abc import Callable, Sequence
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medcl_monai.knobs import knob_types


class PatchSwap:
    """Swaps pairs of patches of each sample, so that a restoration has to know what belongs where.

    The task is context restoration (Chen et al. 2019, https://doi.org/10.1016/j.media.2019.101539). All patches of a
    sample are disjoint, so the corruption moves pixels and loses none: it is a permutation, and the same draw applied
    twice restores the sample. In the code of Chaitanya et al. 2020, later pairs may overlap earlier ones.

    Args:
        patch: side of a patch in pixels (2D) or voxels (3D), at least 1.
        swaps: number of pairs of patches that change places in each sample, 0 or more. 0: nothing is changed.

    Raises:
        ValueError: a number is out of range; on a call: so many patches do not fit without overlap.
    """

    @knob_types
    def __init__(self, patch: int = 8, swaps: int = 10) -> None:
        if patch < 1 or swaps < 0:
            raise ValueError(f"PatchSwap: patch {patch} must be at least 1, swaps {swaps} 0 or more")
        self.patch, self.swaps = patch, swaps

    def draw(
        self, batch: int, size: Sequence[int], generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch patches axes"]:
        """Draw the corners of the patches; the first half of the patches changes places with the second half."""
        return patch_corners(batch, size, self.patch, 2 * self.swaps, generator)

    def apply(
        self, x: Float[Tensor, "batch channels *size"], corners: Int[Tensor, "batch patches axes"]
    ) -> tuple[Float[Tensor, "batch channels *size"], Bool[Tensor, "batch 1 *size"]]:
        """Return the corrupted samples, and where they changed."""
        size = x.shape[2:]
        pixels = _pixels(corners.to(x.device), size, self.patch)
        first, second = (half.flatten(1) for half in pixels.tensor_split(2, dim=1))
        places = torch.arange(prod(size), device=x.device)
        source = places.repeat(len(x), 1).scatter_(1, first, second).scatter_(1, second, first)
        moved = x.flatten(2).gather(2, source[:, None].expand(-1, x.shape[1], -1))
        return moved.view_as(x), (source != places).view(len(x), 1, *size)

    def __call__(
        self, x: Float[Tensor, "batch channels *size"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch channels *size"], Bool[Tensor, "batch 1 *size"]]:
        """Draw and apply."""
        return self.apply(x, self.draw(len(x), x.shape[2:], generator))


class BlockMask:
    """Replaces random blocks of each sample by one value, as in masked image modelling.

    Xie et al. 2022 (SimMIM), https://arxiv.org/abs/2111.09886. Each sample has the same number of masked blocks. A
    remainder of the sample that holds no whole block, at the end of an axis, is never masked.

    Args:
        block: side of a block in pixels (2D) or voxels (3D), at least 1.
        ratio: share of the blocks that are masked, 0 to 1. 0: nothing is changed.
        fill: value of masked pixels, in the units of the images; 0 is the mean of z-scored images.

    Raises:
        ValueError: a number is out of range; on a call: the sample is smaller than a block.
    """

    @knob_types
    def __init__(self, block: int = 8, ratio: float = 0.6, fill: float = 0.0) -> None:
        if block < 1 or not 0 <= ratio <= 1:
            raise ValueError(f"BlockMask: block {block} must be at least 1, ratio {ratio} 0 to 1")
        self.block, self.ratio, self.fill = block, ratio, fill

    def draw(
        self, batch: int, size: Sequence[int], generator: torch.Generator | None = None
    ) -> Bool[Tensor, " batch *blocks"]:
        """Draw which blocks are masked."""
        blocks = [side // self.block for side in size]
        if min(blocks) < 1:
            raise ValueError(f"BlockMask: a sample of {_shown(size)} holds no block of side {self.block}")
        masked = torch.zeros(batch, prod(blocks), dtype=torch.bool)
        chosen = torch.rand(masked.shape, generator=generator).argsort(1)[:, : round(self.ratio * prod(blocks))]
        return masked.scatter_(1, chosen, True).view(batch, *blocks)

    def apply(
        self, x: Float[Tensor, "batch channels *size"], masked: Bool[Tensor, " batch *blocks"]
    ) -> tuple[Float[Tensor, "batch channels *size"], Bool[Tensor, "batch 1 *size"]]:
        """Return the corrupted samples, and where they changed."""
        changed = torch.zeros(len(x), *x.shape[2:], dtype=torch.bool, device=x.device)
        pixels = masked.to(x.device)
        for axis in range(1, pixels.ndim):
            pixels = pixels.repeat_interleave(self.block, axis)
        changed[(slice(None), *(slice(side) for side in pixels.shape[1:]))] = pixels
        return x.masked_fill(changed[:, None], self.fill), changed[:, None]

    def __call__(
        self, x: Float[Tensor, "batch channels *size"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch channels *size"], Bool[Tensor, "batch 1 *size"]]:
        """Draw and apply."""
        return self.apply(x, self.draw(len(x), x.shape[2:], generator))


class Corruption:
    """Applies several corruptions one after another.

    Args:
        corruptions: the corruptions, such as a `PatchSwap` and a `BlockMask`.
    """

    def __init__(self, corruptions: Sequence[Callable]) -> None:
        self.corruptions = tuple(corruptions)

    def __call__(
        self, x: Float[Tensor, "batch channels *size"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch channels *size"], Bool[Tensor, "batch 1 *size"]]:
        """Return the corrupted samples, and where any of the corruptions changed them."""
        changed = torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.bool, device=x.device)
        for corrupt in self.corruptions:
            x, here = corrupt(x, generator)
            changed = changed | here
        return x, changed


def patch_corners(
    batch: int, size: Sequence[int], patch: int, number: int, generator: torch.Generator | None = None
) -> Int[Tensor, "batch number axes"]:
    """Draw the corners of patches that do not overlap, at random places of each sample.

    The sample is divided into a grid of cells, as large as the number of patches allows. Each patch lies at a random
    place of a cell of its own, and the whole grid at a random place of the sample.

    Args:
        batch: number of samples.
        size: size of the samples in pixels (2D) or voxels (3D).
        patch: side of the patches, at least 1.
        number: number of patches per sample, 0 or more.
        generator: generator of the random numbers, on the CPU; None: torch's default generator.

    Raises:
        ValueError: so many patches do not fit without overlap.
    """
    cell, grid = _cells(size, patch, number)
    chosen = torch.rand(batch, prod(grid), generator=generator).argsort(1)[:, :number]
    cells = torch.stack(torch.unravel_index(chosen, grid), -1)
    spare = torch.tensor([side - cell * count for side, count in zip(size, grid, strict=True)])
    offset = (torch.rand(batch, 1, len(size), generator=generator) * (spare + 1)).long()
    jitter = (torch.rand(batch, number, len(size), generator=generator) * (cell - patch + 1)).long()
    return offset + cells * cell + jitter


def _cells(size: Sequence[int], patch: int, number: int) -> tuple[int, tuple[int, ...]]:
    """Return the side of the cells and their number along each axis: the largest cells that leave the grid room."""
    for cell in range(max(size), patch - 1, -1):
        grid = tuple((side - cell + 1) // cell for side in size)
        if min(grid) > 0 and prod(grid) >= number:
            return cell, grid
    grid = tuple(side // patch for side in size)
    if prod(grid) < number:
        raise ValueError(
            f"PatchSwap: {number} patches of {patch} do not fit into {_shown(size)} without overlap: "
            f"at most {prod(grid)}"
        )
    return patch, grid


def _pixels(
    corners: Int[Tensor, "batch patches axes"], size: Sequence[int], patch: int
) -> Int[Tensor, "batch patches pixels"]:
    """Return the flat indices of the pixels of each patch."""
    strides = torch.tensor([prod(size[axis + 1 :]) for axis in range(len(size))], device=corners.device)
    within = torch.cartesian_prod(*[torch.arange(patch, device=corners.device)] * len(size)) @ strides
    return (corners @ strides)[..., None] + within


def _shown(size: Sequence[int]) -> str:
    return "x".join(str(side) for side in size)

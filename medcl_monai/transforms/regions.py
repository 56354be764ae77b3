"""Small regions of a sample, and the places of these regions in both views of the sample."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medcl_monai.precision import full_precision
from medcl_monai.transforms.views import apply_warp


class Regions(NamedTuple):
    """Points of a sample in two views of the sample.

    Attributes:
        points_1: coordinates of the points in view 1, (B, R, D), last spatial axis first, in [-1, 1].
        points_2: coordinates of the same points in view 2, (B, R, D).
        valid: whether both views show the point and the point lies in the foreground, (B, R) bool.
    """

    points_1: Tensor
    points_2: Tensor
    valid: Tensor


@full_precision
def draw_regions(
    warp_1: Float[Tensor, "batch axes columns"],
    warp_2: Float[Tensor, "batch axes columns"],
    regions: int,
    overdraw: float = 4.0,
    foreground_1: Float[Tensor, "batch 1 *size"] | None = None,
    generator: torch.Generator | None = None,
) -> Regions:
    """Draw points that both views of a sample show, and return their coordinates in each view.

    View 1 is divided into a grid of cells, and one random point u is drawn in each cell. In view 2 the point has the
    coordinates ``u' = warp_2^-1 (warp_1 u)``. A point is valid if view 2 contains the point and the point lies in the
    foreground. For each sample, `regions` points are kept at random, valid points before all others.

    Args:
        warp_1: affine warp from coordinates of view 1 to coordinates of the sample, (B, D, D + 1).
        warp_2: affine warp from coordinates of view 2 to coordinates of the sample, (B, D, D + 1).
        regions: number of points per sample, at least 1.
        overdraw: number of points that are tried for each point that is kept, at least 1.
        foreground_1: where view 1 shows tissue (above 0.5), on any grid; None: everywhere.
        generator: generator of the random numbers, on the CPU; None: torch's default generator.

    Raises:
        ValueError: a number is out of range, or a warp cannot be inverted.
    """
    if regions < 1 or overdraw < 1:
        raise ValueError(f"draw_regions: regions {regions} and overdraw {overdraw} must be at least 1")
    batch, dims = warp_1.shape[:2]
    side = math.ceil(round((overdraw * regions) ** (1 / dims), 9))
    cells = torch.cartesian_prod(*[torch.arange(side)] * dims).reshape(-1, dims)
    numbers = torch.rand(batch, len(cells), dims + 1, generator=generator)
    points_1 = ((cells + numbers[..., :dims]) * (2 / side) - 1).to(warp_1)
    points_2 = into_view(warp_2, apply_warp(warp_1, points_1))
    valid = (points_2.abs() <= 1).all(-1)
    if foreground_1 is not None:
        valid &= sample_regions(foreground_1, points_1)[..., 0] > 0.5
    kept = (numbers[..., dims].to(warp_1.device) + ~valid).argsort(1)[:, :regions]
    places = kept[..., None].expand(-1, -1, dims)
    return Regions(points_1.gather(1, places), points_2.gather(1, places), valid.gather(1, kept))


def into_view(
    warp: Float[Tensor, "batch axes columns"], points: Float[Tensor, "batch points axes"]
) -> Float[Tensor, "batch points axes"]:
    """Convert points from sample coordinates to view coordinates; the function is the inverse of `apply_warp`."""
    try:
        return torch.linalg.solve(warp[:, :, :-1], (points - warp[:, None, :, -1]).mT).mT
    except torch.linalg.LinAlgError as error:
        raise ValueError(f"a warp cannot be inverted: {error}") from error


@full_precision
def sample_regions(
    feature_map: Float[Tensor, "batch channels *size"], points: Float[Tensor, "batch points axes"]
) -> Float[Tensor, "batch points channels"]:
    """Sample a feature map at points by linear interpolation, in fp32 at least.

    The coordinates of the points are those of the map: last spatial axis first, in [-1, 1].
    """
    axes = points.shape[-1]
    grid = points.to(feature_map)[(slice(None), slice(None), *[None] * (axes - 1))]
    sampled = F.grid_sample(feature_map, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.flatten(2).mT

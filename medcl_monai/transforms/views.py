"""Views in batches on the device: one fused affine resampling each, whose warp is returned, then intensity changes.

Parameters are drawn on the CPU, apart from their application, so the same seed gives the same views on every device.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medcl_monai.transforms.intensity import contrast_and_shift


def random_warp(
    batch: int,
    size: Sequence[int],
    rotation: float,
    scale_range: Sequence[float],
    translation: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch axes columns"]:
    """Random affine warps (B, D, D + 1), view coordinates to sample coordinates, as ``affine_grid`` takes them.

    Coordinates lie in [-1, 1] with ``align_corners=False``, the last spatial axis first. Rotation and scale are those
    of the pixel grid, so that shapes keep their proportions in samples that are not square.

    Args:
        batch: number of samples.
        size: of the samples, 2 or 3 sides.
        rotation: degrees, each way; in 3D about each axis.
        scale_range: smallest and largest magnification of the content, drawn log-uniformly, above 0.
        translation: share of the side, each way, 0 or more.
        generator: of the random numbers; None: torch's own, on the CPU.

    Raises:
        ValueError: a range is impossible, or `size` has not 2 or 3 sides.
    """
    dims, (low, high) = len(size), scale_range
    if dims not in (2, 3):
        raise ValueError(f"random_warp: size {tuple(size)} must have 2 or 3 sides")
    if not 0 < low <= high or rotation < 0 or translation < 0:
        raise ValueError(
            f"random_warp: scale_range {tuple(scale_range)} must be ascending and above 0, "
            f"rotation {rotation} and translation {translation} 0 or more"
        )
    numbers = torch.rand(batch, (1 if dims == 2 else 3) + 1 + dims, generator=generator, dtype=torch.float64)
    signed = 2 * numbers - 1
    angles, shift = signed[:, : -1 - dims] * math.radians(rotation), signed[:, -dims:] * 2 * translation
    scale = torch.exp(math.log(low) + numbers[:, -1 - dims] * (math.log(high) - math.log(low)))
    matrix = rotation_matrix(angles) / scale[:, None, None]
    half = torch.tensor(list(size)[::-1], dtype=torch.float64) / 2  # pixels per unit of each coordinate
    matrix = matrix * half / half[:, None]
    return torch.cat([matrix, shift[:, :, None]], dim=2).float()


def random_crop_warp(
    batch: int,
    size: Sequence[int],
    area_range: Sequence[float],
    aspect: float,
    rotation: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch axes columns"]:
    """Random warps (B, D, D + 1) whose views are rotated crops of the sample, as ``affine_grid`` takes them.

    A crop has `area_range` of the sample's area (3D: volume), less where a side would be longer than the sample's;
    before its rotation about its own centre it lies inside.

    Args:
        batch: number of samples.
        size: of the samples, 2 or 3 sides; a rotation is one of their pixel grid.
        area_range: smallest and largest share of the sample's area, above 0 to 1.
        aspect: largest ratio of two of a crop's sides, each as a share of the sample's, 1 and up.
        rotation: degrees, each way; in 3D about each axis.
        generator: of the random numbers; None: torch's own, on the CPU.

    Raises:
        ValueError: a range is impossible, or `size` has not 2 or 3 sides.
    """
    dims, (low, high) = len(size), area_range
    if dims not in (2, 3):
        raise ValueError(f"random_crop_warp: size {tuple(size)} must have 2 or 3 sides")
    if not 0 < low <= high <= 1 or aspect < 1 or rotation < 0:
        raise ValueError(
            f"random_crop_warp: area_range {tuple(area_range)} must be ascending, above 0 to 1, "
            f"aspect {aspect} 1 or more, rotation {rotation} 0 or more"
        )
    turns = 1 if dims == 2 else 3
    numbers = torch.rand(batch, turns + 1 + 2 * dims, generator=generator, dtype=torch.float64)
    signed = 2 * numbers - 1
    angles, stretch, place = signed[:, :turns], signed[:, turns : turns + dims], signed[:, turns + dims : -1]
    stretch = (stretch - stretch.mean(1, keepdim=True)) * math.log(aspect) / 2
    share = (low + numbers[:, -1:] * (high - low)) ** (1 / dims)
    sides = (share * stretch.exp()).clamp(max=1)
    half = torch.tensor(list(size)[::-1], dtype=torch.float64) / 2  # pixels per unit of each coordinate
    matrix = rotation_matrix(angles * math.radians(rotation)) * half / half[:, None] * sides[:, None]
    return torch.cat([matrix, (place * (1 - sides))[:, :, None]], dim=2).float()


def rotation_matrix(angles: Float[Tensor, "batch turns"]) -> Float[Tensor, "batch axes axes"]:
    """Rotations by one angle (2D) or by three, about x, y, z in turn (3D), in radians; coordinates are (x, y[, z])."""
    cos, sin = angles.cos(), angles.sin()
    planes = [(0, 1)] if angles.shape[1] == 1 else [(1, 2), (0, 2), (0, 1)]
    dims = 2 if angles.shape[1] == 1 else 3
    matrix = torch.eye(dims, dtype=angles.dtype).repeat(len(angles), 1, 1)
    for turn, (i, j) in enumerate(planes):
        plane = torch.eye(dims, dtype=angles.dtype).repeat(len(angles), 1, 1)
        plane[:, i, i] = plane[:, j, j] = cos[:, turn]
        plane[:, i, j], plane[:, j, i] = -sin[:, turn], sin[:, turn]
        matrix = plane @ matrix
    return matrix


def resample(
    sample: Float[Tensor, "batch channels *size"],
    warp: Float[Tensor, "batch axes columns"],
    size: Sequence[int] | None = None,
) -> Float[Tensor, "batch channels *viewed"]:
    """The view of a sample through a warp: ``view(u) = sample(warp u)``, linear; outside is the sample's minimum.

    Args:
        sample: images (B, C, *S).
        warp: (B, D, D + 1), view to sample coordinates, as `random_warp` draws them.
        size: of the view; None: the sample's.
    """
    target = [*sample.shape[:2], *(sample.shape[2:] if size is None else size)]
    grid = F.affine_grid(warp.to(sample), target, align_corners=False)
    # grid_sample fills with 0: after the shift, 0 is the minimum
    least = sample.flatten(2).amin(2)[(..., *(None for _ in sample.shape[2:]))]
    return F.grid_sample(sample - least, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + least


def jitter(
    x: Float[Tensor, "batch channels *size"], amount: float, generator: torch.Generator | None = None
) -> Float[Tensor, "batch channels *size"]:
    """Contrast × U(1 - amount, 1 + amount) about each sample's mean, brightness + U(-amount, amount).

    Args:
        x: images (B, C, *S).
        amount: 0 (returns `x` itself) to 1; brightness is in the image's units, standard deviations if z-scored.
        generator: of the random numbers; None: torch's own, on the CPU.

    Raises:
        ValueError: `amount` is not in 0 to 1.
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"jitter: amount must be 0 to 1, got {amount}")
    if amount == 0:
        return x
    return contrast_and_shift(x, amount, amount, generator)


def apply_warp(
    warp: Float[Tensor, "batch axes columns"], points: Float[Tensor, "batch points axes"]
) -> Float[Tensor, "batch points axes"]:
    """Sample coordinates of points given in view coordinates, last spatial axis first, in [-1, 1]."""
    return points @ warp[:, :, :-1].mT + warp[:, None, :, -1]

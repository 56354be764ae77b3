"""Views of batches on the device: one affine resampling per view, whose warp is returned, then intensity changes.

Random numbers are drawn on the CPU and then applied on the device, so a seed gives the same views on every device.
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
    """Draw random affine warps (B, D, D + 1) from view to sample coordinates, as ``affine_grid`` takes them.

    Coordinates lie in [-1, 1] with ``align_corners=False``, last spatial axis first. Rotation and scale act on the
    pixel grid, so shapes keep their proportions in samples that are not square.

    Args:
        batch: number of samples.
        size: size of the samples in pixels (2D) or voxels (3D), 2 or 3 numbers.
        rotation: largest rotation in degrees, in both directions, in 3D about each axis; 0 or more.
        scale_range: smallest and largest magnification of the content, above 0; the magnification is drawn
            log-uniformly.
        translation: largest shift along each axis as a share of the sample's side, in both directions; 0 or more.
        generator: generator of the random numbers, on the CPU; None: torch's default generator.

    Raises:
        ValueError: a range is impossible, or `size` does not have 2 or 3 entries.
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
    """Draw random warps (B, D, D + 1) whose views are rotated crops of the sample, as ``affine_grid`` takes them.

    The area (3D: volume) of a crop is a share of the sample's, drawn from `area_range`. The area is smaller where a
    side of the crop would be longer than the sample's side. Before its rotation about its own centre, a crop lies
    inside the sample.

    Args:
        batch: number of samples.
        size: size of the samples in pixels (2D) or voxels (3D), 2 or 3 numbers; a crop is rotated on this pixel grid.
        area_range: smallest and largest share of the sample's area (3D: volume), above 0, at most 1.
        aspect: largest ratio of two sides of a crop, each as a share of the sample's side, at least 1.
        rotation: largest rotation in degrees, in both directions, in 3D about each axis; 0 or more.
        generator: generator of the random numbers, on the CPU; None: torch's default generator.

    Raises:
        ValueError: a range is impossible, or `size` does not have 2 or 3 entries.
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
    """Return rotation matrices that act on coordinates (x, y[, z]).

    In 2D, each rotation has one angle; in 3D, three angles about x, y and z in turn. Angles are in radians.
    """
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
    """Return the view of a sample through a warp, ``view(u) = sample(warp u)``, by linear interpolation.

    Places outside the sample take the minimum of the sample.

    Args:
        sample: images (B, C, *S).
        warp: affine warp from view coordinates to sample coordinates, (B, D, D + 1), as `random_warp` draws it.
        size: size of the view in pixels (2D) or voxels (3D); None: the size of the sample.
    """
    target = [*sample.shape[:2], *(sample.shape[2:] if size is None else size)]
    grid = F.affine_grid(warp.to(sample), target, align_corners=False)
    # grid_sample fills with 0; after the subtraction, 0 is the minimum of each sample
    least = sample.flatten(2).amin(2)[(..., *(None for _ in sample.shape[2:]))]
    return F.grid_sample(sample - least, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + least


def jitter(
    x: Float[Tensor, "batch channels *size"], amount: float, generator: torch.Generator | None = None
) -> Float[Tensor, "batch channels *size"]:
    """Multiply the contrast about each sample's mean by U(1 - amount, 1 + amount), then add U(-amount, amount).

    Args:
        x: images (B, C, *S).
        amount: largest relative change of the contrast, and largest change of the brightness in the units of the images
            (standard deviations if z-scored), 0 to 1; 0: `x` itself is returned.
        generator: generator of the random numbers, on the CPU; None: torch's default generator.

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
    """Convert points from view coordinates to sample coordinates, last spatial axis first, in [-1, 1]."""
    return points @ warp[:, :, :-1].mT + warp[:, None, :, -1]

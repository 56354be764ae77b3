"""One subject of the example population: a random anatomy, its image and its exact labels."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage as ndi
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from medcl_monai.data.example.template import CROP, ExampleTemplate, example_template

GRID = {2.0: (80, 96, 80), 4.0: (40, 48, 40)}  # size of a volume in voxels, by voxel spacing in mm
TEMPLATE_SPACING = 2.0
TEMPLATE_CENTRE = np.array([48.5, 58.5, 38.0]) - [part.start for part in CROP]


@dataclass(frozen=True)
class Variation:
    """How much subjects differ; a change of a number here requires a new `EXAMPLE_VERSION`.

    A pair of numbers is the range of a uniform draw, except in `coarse`, `fine` and `bias`.
    """

    fold_sd: float = 0.375  # standard deviation of the spline coefficients that are added to the tissue shares
    fold_spacing: float = 3.0  # template voxels between control points
    ventricle_size: tuple[float, float] = (-0.1, 0.5)  # added to the share of CSF near the ventricles
    atrophy: tuple[float, float] = (-0.05, 0.25)  # added to the share of CSF far from the ventricles
    grey: tuple[float, float] = (0.42, 0.70)  # intensity of grey matter
    white_above_grey: tuple[float, float] = (0.10, 0.45)  # intensity of white matter minus that of grey matter
    csf: tuple[float, float] = (0.05, 0.45)  # intensity of CSF
    zoom: tuple[float, float] = (0.78, 1.0)  # size of the brain relative to the template
    axis_zoom_sd: float = 0.04  # standard deviation of the logarithm of a further zoom of each axis
    angle: float = 12.0  # largest rotation about each axis in degrees, in both directions
    shift: float = 3.0  # largest shift along each axis in template voxels, in both directions
    coarse: tuple[float, float] = (40.0, 3.3)  # mm between control points; sd of the coefficients, template voxels
    fine: tuple[float, float] = (16.0, 1.35)  # the same, for a finer deformation
    swelling: tuple[float, float] = (0.0, 3.0)  # largest shift around the ventricles in template voxels
    blur: tuple[float, float] = (0.2, 0.8)  # standard deviation of a Gaussian in voxels
    bias: tuple[float, float] = (80.0, 0.75)  # mm between control points; sd of the coefficients of its logarithm
    noise: tuple[float, float] = (0.01, 0.06)  # standard deviation in the units of grey, white_above_grey and csf
    gain: tuple[float, float] = (300.0, 1500.0)  # factor from these units to the stored intensities


@dataclass(frozen=True)
class ExampleSubject:
    """A generated subject: image, label, and the anatomy from which both are made.

    Attributes:
        image: intensities, int16, (80, 96, 80) voxels at 2 mm.
        label: label map on the grid of the image, uint8.
        affine: matrix from voxel indices to mm in RAS; the centre of the volume is at 0.
        warp: the place in the template that each voxel of the image shows, in template voxels, (3, *S), float64.
        anatomy: label map of the subject in template space, uint8.
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    warp: np.ndarray
    anatomy: np.ndarray


def example_subject(
    number: int, seed: int = 0, spacing: float = 2.0, variation: Variation | None = None
) -> ExampleSubject:
    """Generate subject `number` of the population with seed `seed`; the subject depends on the arguments alone.

    Args:
        number: number of the subject in the population, 0 or more.
        seed: seed of the population, 0 or more.
        spacing: voxel spacing in mm, 2.0 or 4.0.
        variation: how much subjects differ; None: as in the example population.

    Raises:
        ValueError: `number` or `seed` is negative, or `spacing` is neither 2.0 nor 4.0.
    """
    if number < 0 or seed < 0:
        raise ValueError(f"example_subject: number={number} and seed={seed} must be 0 or more")
    if spacing not in GRID:
        raise ValueError(f"example_subject: spacing={spacing} is not 2.0 or 4.0")
    variation = Variation() if variation is None else variation
    # each subject has its own random stream; by NumPy's policy the streams of RandomState never change
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((seed, number))))
    template = example_template()
    shares = _shares(template, random, variation)
    anatomy = template.label(shares)
    intensity = _intensity(shares, random, variation)
    warp = _warp(template, random, variation, spacing)
    label = _nearest(anatomy, warp)
    image = _image(intensity, template.brain, warp, random, variation, spacing)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = [-spacing * (side - 1) / 2 for side in GRID[spacing]]
    return ExampleSubject(image, label, affine, warp, anatomy)


def field(random: np.random.RandomState, channels: int, size: tuple[int, ...], apart: float, sd: float) -> np.ndarray:
    """Draw smooth random fields (channels, *size) as cubic B-splines.

    The coefficients are normal with standard deviation `sd`, and the control points are `apart` voxels apart.
    """
    matrices = [spline_matrix(side, apart) for side in size]
    coefficients = random.normal(0, sd, (channels, *(matrix.shape[1] for matrix in matrices)))
    return np.einsum("cijk,xi,yj,zk->cxyz", coefficients, *matrices, optimize=True)


def spline_matrix(side: int, apart: float) -> np.ndarray:
    """Return the values of the cubic B-splines at `side` voxels, (side, control points); each row sums to 1."""
    points = int((side - 1) // apart) + 4
    knots = np.arange(-3, points + 1, dtype=np.float64)
    return BSpline.design_matrix(np.arange(side) / apart, knots, 3).toarray()


def _shares(template: ExampleTemplate, random: np.random.RandomState, variation: Variation) -> np.ndarray:
    size = template.brain.shape
    shares = template.tissue + field(random, 3, size, variation.fold_spacing, variation.fold_sd)
    near = ndi.gaussian_filter(_ventricle_voxels(template), 2)
    near /= near.max()
    shares[2] += random.uniform(*variation.ventricle_size) * near + random.uniform(*variation.atrophy) * (1 - near)
    return np.where(template.brain, np.maximum(shares, 0.001), 0.0)


def _ventricle_voxels(template: ExampleTemplate) -> np.ndarray:
    return (template.label(template.tissue) == 4).astype(np.float64)


def _intensity(shares: np.ndarray, random: np.random.RandomState, variation: Variation) -> np.ndarray:
    grey = random.uniform(*variation.grey)
    white = grey + random.uniform(*variation.white_above_grey)
    csf = random.uniform(*variation.csf)
    random.uniform()  # this draw is reserved for another image contrast
    squares = shares**2
    total = squares.sum(0)
    return np.tensordot([white, grey, csf], squares, 1) / np.where(total > 0, total, 1)


def _warp(
    template: ExampleTemplate, random: np.random.RandomState, variation: Variation, spacing: float
) -> np.ndarray:
    size = GRID[spacing]
    zoom = random.uniform(*variation.zoom) * np.exp(variation.axis_zoom_sd * random.normal(size=3))
    angles = np.radians(random.uniform(-variation.angle, variation.angle, 3))
    shift = random.uniform(-variation.shift, variation.shift, 3)
    coarse, fine = (field(random, 3, size, apart / spacing, sd) for apart, sd in (variation.coarse, variation.fine))
    voxels = np.stack(np.meshgrid(*(np.arange(side) - (side - 1) / 2 for side in size), indexing="ij"))
    matrix = Rotation.from_euler("XYZ", angles).as_matrix() @ np.diag(spacing / TEMPLATE_SPACING / zoom)
    warp = np.tensordot(matrix, voxels, 1) + (TEMPLATE_CENTRE + shift)[:, None, None, None] + coarse + fine
    push = np.stack(np.gradient(ndi.gaussian_filter(_ventricle_voxels(template), 4)))
    push /= np.sqrt((push**2).sum(0)).max()
    return warp + random.uniform(*variation.swelling) * np.stack([linear(part, warp) for part in push])


def _image(
    intensity: np.ndarray,
    brain: np.ndarray,
    warp: np.ndarray,
    random: np.random.RandomState,
    variation: Variation,
    spacing: float,
) -> np.ndarray:
    apart, sd = variation.bias
    image = ndi.gaussian_filter(linear(intensity, warp), random.uniform(*variation.blur))
    image = image * np.exp(field(random, 1, image.shape, apart / spacing, sd)[0])
    strength = random.uniform(*variation.noise)
    first, second = random.normal(size=(2, *image.shape))
    image = np.sqrt((image + strength * first) ** 2 + (strength * second) ** 2)  # Rician noise, as in MR magnitudes
    image[linear(brain.astype(np.float64), warp) <= 0.5] = 0
    return np.rint(image * random.uniform(*variation.gain)).astype(np.int16)


def linear(values: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """Sample values at the coordinates of a warp by trilinear interpolation; the value outside the volume is 0."""
    return ndi.map_coordinates(values, warp, order=1, mode="constant")


def _nearest(anatomy: np.ndarray, warp: np.ndarray) -> np.ndarray:
    places = np.rint(warp).astype(np.int64)
    inside = np.all([(place >= 0) & (place < side) for place, side in zip(places, anatomy.shape, strict=True)], axis=0)
    clipped = [np.clip(place, 0, side - 1) for place, side in zip(places, anatomy.shape, strict=True)]
    return np.where(inside, anatomy[tuple(clipped)], 0).astype(np.uint8)

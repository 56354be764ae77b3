"""Loading and preparing volumes: one function for pre-training, training, validation and inference."""

import sys
from collections.abc import Callable, Mapping, Sequence

from monai.transforms import (
    ClipIntensityPercentilesd,
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Transform,
)

from medcl_monai.knobs import knob_types
from medcl_monai.transforms.dictionary import Spacingd, pixdim

IMAGE, LABEL = "image", "label"
SCALES = ("z-score", "unit")
LARGEST = sys.float_info.max  # an infinite window would make every image constant
INTENSITY = {"percentiles": [0.5, 99.5], "scale": "z-score"}


class Preprocessing(Compose):
    """MONAI's `Compose` together with the settings of its transforms, which are recorded with saved weights.

    Attributes:
        settings: the settings that decide the grid and the intensities that a network sees.
    """

    def __init__(self, transforms: Sequence[Transform], settings: Mapping[str, object]) -> None:
        super().__init__(transforms)
        self.settings = dict(settings)


@knob_types
def preprocessing(
    keys: str | Sequence[str],
    pixel_spacing: float,
    spatial_dims: int = 2,
    slice_axis: int = 2,
    intensity: Mapping[str, object] | None = None,
    keep_grid: str | Sequence[str] = (),
    label_steps: Sequence[Callable] = (),
) -> Preprocessing:
    """Make the transforms that load volumes, orient them to RAS, resample them and normalise the intensities of images.

    Args:
        keys: keys of the volumes in an entry: "image", or ["image", "label"].
        pixel_spacing: spacing in mm to which volumes are resampled, above 0; in 2D along the two axes within the slice,
            while the slice axis keeps its own spacing; in 3D along all axes.
        spatial_dims: number of spatial axes of the network: 2 (slices) or 3 (volumes).
        slice_axis: axis that the slices are perpendicular to: 0, 1 or 2 for x, y or z, which gives sagittal, coronal or
            axial slices.
        intensity: how the intensities of an image are normalised. First, the values are clipped to ``percentiles``
            [low, high] of the volume, 0 to 100, or to a ``window`` [low, high] in the units of the image, such as HU in
            CT, or not at all. Then the values are scaled: ``scale`` "z-score" gives mean 0 and standard deviation 1,
            "unit" maps the clipped range to 0 to 1. None: percentiles 0.5 and 99.5, z-score.
        keep_grid: keys of volumes that are neither oriented nor resampled, such as a label with which predictions are
            compared on the label's own grid.
        label_steps: further transforms, which run last, such as MONAI's `MapLabelValued` to join structures.

    Raises:
        ValueError: a number is out of range, or `intensity` has unknown parts or parts that exclude each other.

    Example:
        >>> prepare = preprocessing("image", 1.0, intensity={"window": [-160, 240], "scale": "unit"})
        >>> [type(step).__name__ for step in prepare.transforms][-1]
        'ScaleIntensityRanged'
    """
    keys = [keys] if isinstance(keys, str) else list(keys)
    moved = [key for key in keys if key not in keep_grid]
    intensity = dict(INTENSITY if intensity is None else intensity)
    modes = ["nearest" if key == LABEL else "bilinear" for key in moved]
    steps = [
        LoadImaged(keys),
        EnsureChannelFirstd(keys),
        Orientationd(moved, axcodes="RAS", labels=None),
        Spacingd(moved, pixdim=pixdim(spatial_dims, slice_axis, pixel_spacing), mode=modes),
        *intensity_steps(intensity),
        *label_steps,
    ]
    settings = {"pixel_spacing": pixel_spacing, "spatial_dims": spatial_dims, "intensity": intensity}
    return Preprocessing(steps, {**settings, "slice_axis": slice_axis} if spatial_dims == 2 else settings)


def intensity_steps(intensity: Mapping[str, object]) -> list[Transform]:
    """Return the transforms that normalise the image as `intensity` says; `preprocessing` describes `intensity`.

    Raises:
        ValueError: unknown parts, both percentiles and window, a range that is not ascending, or an unknown scale.
    """
    unit, bounds = _check(intensity), intensity.get("percentiles") or intensity.get("window")
    if bounds is None:
        return [ScaleIntensityd(IMAGE, minv=0.0, maxv=1.0)] if unit else [NormalizeIntensityd(IMAGE)]
    low, high = bounds
    if "percentiles" not in intensity:
        window = ScaleIntensityRanged(IMAGE, a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
        return [window] if unit else [window, NormalizeIntensityd(IMAGE)]
    if unit:
        return [ScaleIntensityRangePercentilesd(IMAGE, lower=low, upper=high, b_min=0.0, b_max=1.0, clip=True)]
    return [ClipIntensityPercentilesd(IMAGE, lower=low, upper=high), NormalizeIntensityd(IMAGE)]


def _check(intensity: Mapping[str, object]) -> bool:
    """Check all parts of `intensity`, and return whether the scale is "unit"."""
    expected = "intensity needs scale 'z-score' or 'unit', and percentiles [low, high], window [low, high] or neither"
    if set(intensity) - {"percentiles", "window", "scale"} or {"percentiles", "window"} <= set(intensity):
        raise ValueError(f"{expected}, got {dict(intensity)}")
    if intensity.get("scale") not in SCALES:
        raise ValueError(f"{expected}, got {dict(intensity)}")
    for part, (least, most) in {"percentiles": (0, 100), "window": (-LARGEST, LARGEST)}.items():
        bounds = intensity.get(part, (0, 1))
        numbers = isinstance(bounds, list | tuple) and [isinstance(x, int | float) for x in bounds] == [True, True]
        if not numbers or not least <= bounds[0] < bounds[1] <= most:
            raise ValueError(f"intensity: {part} must be two ascending numbers, {least} to {most}, got {bounds}")
    return intensity["scale"] == "unit"

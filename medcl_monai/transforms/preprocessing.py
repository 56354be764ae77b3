"""How volumes are loaded and prepared: one factory for pre-training, training, validation and inference."""

from collections.abc import Mapping, Sequence

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
INTENSITY = {"percentiles": [0.5, 99.5], "scale": "z-score"}


class Preprocessing(Compose):
    """MONAI's `Compose`, with the settings that it was made of, for the record of weights.

    Attributes:
        settings: what decides the grid and the values that a network sees.
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
) -> Preprocessing:
    """Transforms that load volumes, turn them to RAS, resample them and normalise the intensities of the image.

    Args:
        keys: of the entries: "image", or ["image", "label"].
        pixel_spacing: pixels or voxels are resampled to this size, in mm; in 2D within the slice, while the slice axis
            keeps its own spacing, in 3D on all axes.
        spatial_dims: of the network, 2 (slices) or 3.
        slice_axis: the axis that slices are perpendicular to, 0, 1 or 2 of x, y, z.
        intensity: how the values of an image are normalised. First they are clipped, to ``percentiles`` [low, high] of
            the volume, 0 to 100, or to a ``window`` [low, high], as of HU in CT, or not at all. Then they are scaled:
            ``scale`` "z-score" gives mean 0 and standard deviation 1, "unit" maps the clipped range to 0 to 1. None:
            percentiles 0.5 and 99.5, z-score.
        keep_grid: keys that stay on their own grid, as a label that predictions are brought back to.

    Raises:
        ValueError: a number out of range, or an `intensity` of other parts.

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
    ]
    settings = {"pixel_spacing": pixel_spacing, "spatial_dims": spatial_dims, "intensity": intensity}
    return Preprocessing(steps, {**settings, "slice_axis": slice_axis} if spatial_dims == 2 else settings)


def intensity_steps(intensity: Mapping[str, object]) -> list[Transform]:
    """The transforms of the image that an `intensity` stands for; see `preprocessing`.

    Raises:
        ValueError: unknown parts, two ways to clip, a range that is not ascending, or an unknown scale.
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
    """Whether the scale is the unit range, after all parts were looked at."""
    expected = "intensity needs scale 'z-score' or 'unit', and percentiles [low, high], window [low, high] or neither"
    if set(intensity) - {"percentiles", "window", "scale"} or {"percentiles", "window"} <= set(intensity):
        raise ValueError(f"{expected}, got {dict(intensity)}")
    if intensity.get("scale") not in SCALES:
        raise ValueError(f"{expected}, got {dict(intensity)}")
    for part, (least, most) in {"percentiles": (0, 100), "window": (float("-inf"), float("inf"))}.items():
        bounds = intensity.get(part, (0, 1))
        if not isinstance(bounds, list | tuple) or len(bounds) != 2 or not least <= bounds[0] < bounds[1] <= most:
            raise ValueError(f"intensity: {part} must be two ascending numbers, {least} to {most}, got {bounds}")
    return intensity["scale"] == "unit"

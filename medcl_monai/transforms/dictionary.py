"""Dictionary transforms in addition to MONAI's."""

from collections.abc import Mapping

from monai.transforms import Spacingd as MonaiSpacingd

from medcl_monai.knobs import knob_types


class Spacingd(MonaiSpacingd):
    """MONAI's `Spacingd` for data with keys that begin with ``image_`` and hold something other than metadata.

    MONAI takes every value under such a key for a dictionary of metadata. MONAI Label stores the string ``image_path``
    there, so every request would fail (Project-MONAI/MONAILabel#1544). The resampled values, the affine and the inverse
    are those of MONAI.
    """

    def __call__(self, data: Mapping, *args: object, **kwargs: object) -> dict:
        """Return the data with resampled volumes."""
        strange = {name: value for name, value in data.items() if _strange(name, value)}
        known = {name: value for name, value in data.items() if name not in strange}
        return {**super().__call__(known, *args, **kwargs), **strange}


@knob_types
def pixdim(spatial_dims: int, slice_axis: int, pixel_spacing: float) -> list[float]:
    """Return the spacing in mm of each axis for `Spacingd`; -1 in 2D for the slice axis, which keeps its own spacing.

    Raises:
        ValueError: `pixel_spacing` is not above 0, `spatial_dims` is not 2 or 3, or `slice_axis` is not 0, 1 or 2.

    Example:
        >>> pixdim(2, 2, 0.5)
        [0.5, 0.5, -1.0]
    """
    if not pixel_spacing > 0 or spatial_dims not in (2, 3) or slice_axis not in (0, 1, 2):
        raise ValueError(
            f"pixel_spacing {pixel_spacing} (mm) must be above 0, spatial_dims {spatial_dims} 2 or 3, "
            f"slice_axis {slice_axis} 0 to 2"
        )
    return [-1.0 if spatial_dims == 2 and axis == slice_axis else float(pixel_spacing) for axis in range(3)]


def _strange(name: object, value: object) -> bool:
    return isinstance(name, str) and name.startswith("image_") and not isinstance(value, dict)

"""Augmentation for supervised training: one affine transform and mild intensity changes, no flip."""

import math
from collections.abc import Sequence

from monai.transforms import Compose, RandAffined, RandScaleIntensityFixedMeand, RandShiftIntensityd

from medcl_monai.knobs import knob_types


@knob_types
def augmentation(
    size: Sequence[int],
    rotation: float = 15.0,
    scale: float = 0.15,
    translation: float = 0.05,
    intensity: float = 0.2,
) -> Compose:
    """Make the random transforms of a sample's ``image`` (C, *S) and ``label`` (1, *S); every sample is transformed.

    Places outside the sample take the values at the sample's border, because 0 is the mean of z-scored data. There is
    no flip, because left and right are different anatomy.

    Args:
        size: size of the samples in pixels (2D) or voxels (3D), 2 or 3 numbers.
        rotation: largest rotation in degrees, in both directions, in 3D about each axis; 0: no rotation.
        scale: largest relative change of the size, in both directions, along each axis; no unit, 0: no scaling.
        translation: largest shift along each axis as a share of the sample's side, in both directions; 0: no shift.
        intensity: largest relative change of the contrast about the mean, and largest change of the brightness in the
            units of the images (standard deviations if z-scored), in both directions; 0: no change.

    Raises:
        ValueError: `size` does not have 2 or 3 entries.
    """
    if len(size) not in (2, 3):
        raise ValueError(f"augmentation: size {tuple(size)} must have 2 or 3 entries")
    turns = 1 if len(size) == 2 else 3
    return Compose([
        RandAffined(
            keys=["image", "label"],
            prob=1.0,
            rotate_range=[math.radians(rotation)] * turns,
            scale_range=[scale] * len(size),
            translate_range=[translation * side for side in size],
            mode=["bilinear", "nearest"],
            padding_mode="border",
        ),
        RandScaleIntensityFixedMeand(keys="image", prob=1.0, factors=intensity),
        RandShiftIntensityd(keys="image", prob=1.0, offsets=intensity),
    ])

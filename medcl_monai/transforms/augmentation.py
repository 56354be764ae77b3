"""The augmentation of supervised training: one affine and mild intensity changes, no flip."""

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
    """Random transforms of a sample's `image` (C, *S) and `label` (1, *S), applied to every sample.

    Outside is filled with the border's values, since 0 is the mean of z-scored data. There is no flip: left and
    right are anatomy.

    Args:
        size: of the samples, pixels or voxels; 2 or 3 entries.
        rotation: degrees, each way and about each axis.
        scale: share, each way.
        translation: share of the side, each way.
        intensity: contrast about the mean (share) and brightness (standard deviations), each way.

    Raises:
        ValueError: `size` has not 2 or 3 entries.
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

"""Two independent crops of each sample, the views of contrastive methods that compare whole images."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from medcl_monai.knobs import knob_types
from medcl_monai.transforms.intensity import blur, contrast_and_shift, gamma, noise
from medcl_monai.transforms.views import random_crop_warp, resample

ROUNDING = 1e-3  # resampling may leave the range by this much


class CropViews:
    """Takes two independent crops of each sample, rotates them slightly and changes their intensities.

    There is no flip, because left and right are different anatomy.

    Args:
        view_size: size of the views in pixels (2D) or voxels (3D), one number per axis, each at least 1.
        area_range: smallest and largest area of a crop, as a share of the area (3D: volume) of the sample; above 0, at
            most 1.
        aspect: largest ratio of two sides of a crop, each as a share of the sample's side; no unit, at least 1. 1: a
            crop has the proportions of the sample.
        rotation: largest rotation of a crop in degrees, in both directions, in 3D about each axis; 0: no rotation.
        gamma: the exponent of the gamma correction is drawn log-uniformly between exp(-gamma) and exp(gamma); no unit,
            0 or more. 0: no gamma correction.
        contrast: largest relative change of the contrast about the mean, in both directions; no unit, 0 to 1. 0: no
            change.
        shift: largest change of the brightness of images with values in [0, 1], in both directions; 0 or more. 0: no
            change.
        noise: largest standard deviation of the noise that is added to images with values in [0, 1]; 0 or more. 0: no
            noise.
        blur: share of the views that are blurred, 0 to 1; the Gaussian's standard deviation is 0.1 to 2 pixels.
        foreground: intensity above which a pixel of the sample counts as tissue, in the units of the sample.

    Raises:
        ValueError: a number is out of range; `area_range`, `aspect` and `rotation` are checked on a call; the first
            batch has intensities outside 0 to 1, which the changes of intensity would cut off.
    """

    @knob_types
    def __init__(
        self,
        view_size: Sequence[int],
        area_range: Sequence[float] = (0.2, 1.0),
        aspect: float = 4 / 3,
        rotation: float = 15.0,
        gamma: float = 0.5,
        contrast: float = 0.4,
        shift: float = 0.2,
        noise: float = 0.08,
        blur: float = 0.0,
        foreground: float = 0.02,
    ) -> None:
        if min(gamma, contrast, shift, noise, blur) < 0 or max(contrast, blur) > 1 or min(view_size) < 1:
            raise ValueError(
                f"CropViews: gamma {gamma}, shift {shift} and noise {noise} must be 0 or more, "
                f"contrast {contrast} and blur {blur} 0 to 1, view_size {tuple(view_size)} 1 and up"
            )
        self.view_size, self.crop = tuple(view_size), (tuple(area_range), aspect, rotation)
        self.gamma, self.contrast, self.shift, self.noise, self.blur = gamma, contrast, shift, noise, blur
        self.foreground, self._checked = foreground, False

    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the views and the target of a batch.

        The views hold ``view_1`` and ``view_2``; the target holds ``warp_1``, ``warp_2``, ``foreground_1`` and
        ``image``; both hold ``position`` and ``subject``.
        """
        sample = batch["image"]
        self._check(sample)
        known = {"position": batch["position"], "subject": batch["subject"]}
        views, target = dict(known), {**known, "image": sample}
        for number in (1, 2):
            warp = random_crop_warp(len(sample), sample.shape[2:], *self.crop).to(sample)
            view = resample(sample, warp, self.view_size)
            views[f"view_{number}"], target[f"warp_{number}"] = self._vary(view), warp
            if number == 1:
                target["foreground_1"] = (view[:, :1] > self.foreground).to(view)
        return views, target

    def _check(self, sample: Tensor) -> None:
        """Check the intensities of the first batch; a later check would let an accelerator wait in each step."""
        if self._checked:
            return
        low, high = (float(bound) for bound in sample.aminmax())
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise ValueError(
                f"CropViews: intensities from 0 to 1 are expected, got {low:.3g} to {high:.3g}; "
                "set intensity to {'percentiles': [0.5, 99.5], 'scale': 'unit'}, or to a window with scale 'unit'"
            )
        self._checked = True

    def _vary(self, view: Tensor) -> Tensor:
        view = contrast_and_shift(gamma(view, self.gamma), self.contrast, self.shift)
        return blur(noise(view, self.noise), self.blur)

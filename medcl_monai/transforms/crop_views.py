"""Two independent crops of each sample, as contrastive methods of whole images take them."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from medcl_monai.knobs import knob_types
from medcl_monai.transforms.intensity import blur, contrast_and_shift, gamma, noise
from medcl_monai.transforms.views import random_crop_warp, resample


class CropViews:
    """Two independent crops of each sample, turned a little, with changes of intensity; no flip (laterality).

    Args:
        view_size: pixels or voxels of the views.
        area_range: smallest and largest share of the sample's area (3D: volume), above 0 to 1.
        aspect: largest ratio of a crop's sides, 1 and up.
        rotation: degrees, each way.
        gamma: the exponent is exp(± this).
        contrast: about the mean, × 1 ± this.
        shift: of the brightness, ± this; images are in [0, 1].
        noise: largest standard deviation.
        blur: share of the views that are blurred, σ 0.1 to 2 pixels.
        foreground: intensity of the sample above which there is tissue.

    Raises:
        ValueError: a number out of range; on a call: see `random_crop_warp`.
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
        self.foreground = foreground

    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Views (``view_1``, ``view_2``) and target (``warp_1``, ``warp_2``, ``foreground_1``, …)."""
        sample = batch["image"]
        known = {"position": batch["position"], "subject": batch["subject"]}
        views, target = dict(known), {**known, "image": sample}
        for number in (1, 2):
            warp = random_crop_warp(len(sample), sample.shape[2:], *self.crop).to(sample)
            view = resample(sample, warp, self.view_size)
            views[f"view_{number}"], target[f"warp_{number}"] = self._vary(view), warp
            if number == 1:
                target["foreground_1"] = (view[:, :1] > self.foreground).to(view)
        return views, target

    def _vary(self, view: Tensor) -> Tensor:
        view = contrast_and_shift(gamma(view, self.gamma), self.contrast, self.shift)
        return blur(noise(view, self.noise), self.blur)

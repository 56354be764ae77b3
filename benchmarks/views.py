"""Batched views against the same operations as MONAI transforms, one sample after another: views per second."""

import math

import torch
from measure import cpu_seconds, peak_megabytes
from monai.transforms import Compose, RandAffine, RandScaleIntensityFixedMean, RandShiftIntensity

from medcl_monai.transforms.views import jitter, random_warp, resample

ROTATION, SCALE, TRANSLATION, JITTER = 20.0, 0.2, 0.1, 0.2


def per_sample(size: tuple[int, ...]) -> Compose:
    """Rotation, scale and translation in one resampling, then contrast about the mean and brightness, always."""
    angles = [math.radians(ROTATION)] * (1 if len(size) == 2 else 3)
    return Compose([
        RandAffine(
            prob=1.0, rotate_range=angles, scale_range=[SCALE] * len(size),
            translate_range=[TRANSLATION * side for side in size], spatial_size=size, padding_mode="border",
        ),
        RandScaleIntensityFixedMean(prob=1.0, factors=JITTER, fixed_mean=True, preserve_range=False),
        RandShiftIntensity(offsets=JITTER, prob=1.0),
    ])


def batched(batch: torch.Tensor) -> torch.Tensor:
    """One view of every sample."""
    warp = random_warp(len(batch), batch.shape[2:], ROTATION, (1 - SCALE, 1 / (1 - SCALE)), TRANSLATION)
    return jitter(resample(batch, warp), JITTER)


def compare(samples: int, size: tuple[int, ...], repeats: int) -> None:
    """Views per second of both, the ratio, peak memory of both."""
    torch.manual_seed(0)
    batch, transforms = torch.randn(samples, 1, *size), per_sample(size)

    def ours() -> object:
        return batched(batch)

    def theirs() -> object:
        return torch.stack([transforms(sample) for sample in batch])

    seconds = cpu_seconds({"ours": ours, "monai": theirs}, repeats)
    fast, slow = (samples / seconds[name] for name in ("ours", "monai"))
    title = f"views, {samples} of {'x'.join(map(str, size))}"
    print(
        f"{title:34} ours {fast:8.0f}/s {peak_megabytes(ours):6.0f} MB"
        f" | monai transforms {slow:8.0f}/s {peak_megabytes(theirs):6.0f} MB | {fast / slow:5.2f} times as many",
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    compare(16, (128, 128), 21)
    compare(2, (64, 64, 64), 11)

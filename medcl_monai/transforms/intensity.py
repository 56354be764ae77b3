"""Intensity changes of batches on the device.

Random numbers are drawn on the CPU and then applied on the device, so a seed gives the same changes on every device.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CONSTANT = 1e-10  # a variance up to this size is that of rounding errors


def gamma(
    x: Float[Tensor, "batch channels *size"], amount: float, generator: torch.Generator | None = None
) -> Float[Tensor, "batch channels *size"]:
    """Apply a gamma correction to images in [0, 1]; the exponent of each sample is exp(U(-amount, amount)).

    Values outside [0, 1] are clamped first.

    Args:
        x: images (B, C, *S).
        amount: largest absolute logarithm of the exponent, 0 or more; 0: `x` itself is returned.
        generator: generator of the random numbers, on the CPU; None: torch's default generator.
    """
    if amount == 0:
        return x
    power = torch.exp((2 * torch.rand(len(x), generator=generator) - 1) * amount)
    return x.clamp(0, 1).pow(_per_sample(power, x))


def contrast_and_shift(
    x: Float[Tensor, "batch channels *size"], contrast: float, shift: float, generator: torch.Generator | None = None
) -> Float[Tensor, "batch channels *size"]:
    """Multiply the contrast about each sample's mean by U(1 - contrast, 1 + contrast), then add U(-shift, shift).

    Args:
        x: images (B, C, *S).
        contrast: largest relative change of the contrast, 0 to 1.
        shift: largest change of the brightness, in the units of the images, 0 or more.
        generator: generator of the random numbers, on the CPU; None: torch's default generator.
    """
    numbers = 2 * torch.rand(2, len(x), generator=generator) - 1
    change, offset = _per_sample(numbers[0] * contrast, x), _per_sample(numbers[1] * shift, x)
    mean = _per_sample(x.flatten(1).mean(1), x)
    return torch.addcmul(mean * -change + offset, x, 1 + change)


def noise(
    x: Float[Tensor, "batch channels *size"], deviation: float, generator: torch.Generator | None = None
) -> Float[Tensor, "batch channels *size"]:
    """Add normal noise; the standard deviation of each sample's noise is drawn from U(0, deviation).

    Args:
        x: images (B, C, *S).
        deviation: largest standard deviation, in the units of the images, 0 or more; 0: `x` itself is returned.
        generator: generator of the random numbers, on the CPU; None: torch's default generator.
    """
    if deviation == 0:
        return x
    scale = torch.rand(len(x), generator=generator) * deviation
    return torch.addcmul(x, torch.randn(x.shape, generator=generator).to(x), _per_sample(scale, x))


def blur(
    x: Float[Tensor, "batch channels *size"],
    prob: float,
    sigma_range: tuple[float, float] = (0.1, 2.0),
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channels *size"]:
    """Blur some samples with a Gaussian; one grouped convolution per axis serves the whole batch.

    Args:
        x: images (B, C, *S).
        prob: probability that a sample is blurred, 0 to 1; 0: `x` itself is returned.
        sigma_range: smallest and largest standard deviation of the Gaussian in pixels, above 0; the standard deviation
            is drawn uniformly from this range.
        generator: generator of the random numbers, on the CPU; None: torch's default generator.
    """
    if prob == 0:
        return x
    low, high = sigma_range
    numbers = torch.rand(2, len(x), generator=generator)
    sigma = torch.where(numbers[0] < prob, low + numbers[1] * (high - low), torch.tensor(1e-3))  # 1e-3: unchanged
    reach = math.ceil(3 * high)
    kernels = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).to(x).repeat_interleave(x.shape[1], 0)
    rows, axes = x.flatten(0, 1)[None], x.ndim - 2
    convolve = F.conv2d if axes == 2 else F.conv3d
    for axis in range(axes):
        shape = [-1, 1, *(2 * reach + 1 if other == axis else 1 for other in range(axes))]
        reaches = [side for other in reversed(range(axes)) for side in [reach if other == axis else 0] * 2]
        rows = convolve(F.pad(rows, reaches, mode="replicate"), kernels.reshape(shape), groups=rows.shape[1])
    return rows[0].unflatten(0, x.shape[:2])


def standardise(x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch channels *size"]:
    """Shift and scale each channel of each sample to mean 0 and standard deviation 1; constant channels become 0.

    Args:
        x: images (B, C, *S).
    """
    rows = x.flatten(2)
    centred = rows - rows.mean(2, keepdim=True)
    variance = centred.square().mean(2, keepdim=True)  # torch.std_mean takes ten times as long on a CPU
    return (centred * torch.where(variance > CONSTANT, variance.rsqrt(), 0.0)).view_as(x)


def _per_sample(values: Float[Tensor, " batch"], x: Float[Tensor, "batch channels *size"]) -> Tensor:
    return values.to(x)[(..., *(None for _ in x.shape[1:]))]

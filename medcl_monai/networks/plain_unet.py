"""MONAI's UNet in pieces: the encoder, whose blocks are nested."""

from monai.networks.nets.unet import CheckpointUNet, UNet
from torch import Tensor

from medcl_monai.networks.encode import encode, encoder_parts, encoder_widths


@encode.register
def _(backbone: UNet, x: Tensor) -> list[Tensor]:
    maps = [x]
    for name in encoder_parts(backbone):
        maps.append(backbone.get_submodule(name)(maps[-1]))
    return maps[1:]


@encoder_widths.register
def _(backbone: UNet) -> tuple[int, ...]:
    return tuple(backbone.channels)


@encoder_parts.register
def _(backbone: UNet) -> tuple[str, ...]:
    # each level holds (down, skip connection around the next level, up); the last level holds the bottleneck
    inside = ".1.submodule.module" if isinstance(backbone, CheckpointUNet) else ".1.submodule"
    levels = len(backbone.channels) - 1
    return (*(f"model{inside * level}.0" for level in range(levels)), f"model{inside * levels}")

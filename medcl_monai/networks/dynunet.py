"""MONAI's DynUNet in pieces: the blocks of its encoder."""

from monai.networks.nets import DynUNet
from torch import Tensor

from medcl_monai.networks.encode import encode, encoder_parts, encoder_widths


@encode.register
def _(backbone: DynUNet, x: Tensor) -> list[Tensor]:
    maps = [backbone.input_block(x)]
    for block in (*backbone.downsamples, backbone.bottleneck):
        maps.append(block(maps[-1]))
    return maps


@encoder_widths.register
def _(backbone: DynUNet) -> tuple[int, ...]:
    return tuple(backbone.filters)


@encoder_parts.register
def _(backbone: DynUNet) -> tuple[str, ...]:
    # skip_layers holds the same tensors a second time, under other names
    return ("input_block", "downsamples", "bottleneck")

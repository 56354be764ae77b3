"""MONAI's SegResNet in pieces: the stages of its encoder."""

from monai.networks.nets import SegResNet
from torch import Tensor

from medcl_monai.networks.encode import encode, encoder_parts, encoder_widths


@encode.register
def _(backbone: SegResNet, x: Tensor) -> list[Tensor]:
    _, maps = backbone.encode(x)
    return maps


@encoder_widths.register
def _(backbone: SegResNet) -> tuple[int, ...]:
    return tuple(backbone.init_filters * 2**stage for stage in range(len(backbone.blocks_down)))


@encoder_parts.register
def _(backbone: SegResNet) -> tuple[str, ...]:
    dropout = () if backbone.dropout_prob is None else ("dropout",)
    return ("convInit", *dropout, "down_layers")

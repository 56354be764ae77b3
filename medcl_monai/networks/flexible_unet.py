"""MONAI's FlexibleUNet in pieces: the maps of its residual encoder, the blocks of its decoder, and their widths."""

from collections.abc import Iterable

from monai.networks.nets import FlexibleUNet
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from torch import Tensor, nn

from medcl_monai.networks.encode import decode, encode, encoder_parts, encoder_widths

STAGES = 5
STRIDE = 32  # of the encoder's last map; the decoder needs sizes that are multiples of it


@encode.register
def _(backbone: FlexibleUNet, x: Tensor) -> list[Tensor]:
    return list(backbone.encoder(x))


@encoder_widths.register
def _(backbone: FlexibleUNet) -> tuple[int, ...]:
    # a residual encoder has five maps: of the stem and of layer1 to layer4
    return tuple(FLEXUNET_BACKBONE.register_dict[backbone.backbone]["feature_channel"])


@encoder_parts.register
def _(backbone: FlexibleUNet) -> tuple[str, ...]:
    return ("encoder",)


@decode.register
def _(backbone: FlexibleUNet, maps: list[Tensor], stages: int | None = None) -> Tensor:
    # after all stages, backbone.segmentation_head gives the backbone's own output, bit for bit
    count = STAGES if stages is None else stages
    if count not in range(STAGES + 1):
        raise ValueError(f"stages must be 0 to {STAGES}, got {stages}")
    return decode_blocks(backbone.decoder.blocks[:count], maps)


def decode_blocks(blocks: Iterable[nn.Module], maps: list[Tensor]) -> Tensor:
    """Return the map after the decoder's first blocks; each block gets its skip connection, and the fifth has none."""
    x = maps[-1]
    for block, skip in zip(blocks, [*maps[-2::-1], None], strict=False):
        x = block(x, skip)
    return x


def decoder_widths(backbone: FlexibleUNet) -> tuple[int, ...]:
    """Return the number of channels of the decoder's map after each of its five blocks."""
    return tuple(block.convs.conv_1.conv.out_channels for block in backbone.decoder.blocks)

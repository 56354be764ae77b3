"""MONAI's FlexibleUNet in pieces: the maps of its residual encoder, some of its decoder's blocks, their widths."""

from collections.abc import Iterable

from monai.networks.nets import FlexibleUNet
from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE
from torch import Tensor, nn

from medcl_monai.networks.encode import decode, encode

STAGES = 5
STRIDE = 32  # of the encoder's last map, and what the decoder needs sizes to be a multiple of


@encode.register
def _(backbone: FlexibleUNet, x: Tensor) -> list[Tensor]:
    return list(backbone.encoder(x))


@decode.register
def _(backbone: FlexibleUNet, maps: list[Tensor], stages: int | None = None) -> Tensor:
    # backbone.segmentation_head of all stages is the backbone itself, bit for bit
    count = STAGES if stages is None else stages
    if count not in range(STAGES + 1):
        raise ValueError(f"stages must be 0 to {STAGES}, got {stages}")
    return decode_blocks(backbone.decoder.blocks[:count], maps)


def decode_blocks(blocks: Iterable[nn.Module], maps: list[Tensor]) -> Tensor:
    """What some of the decoder's first blocks make of the encoder's maps, each with its skip; the fifth has none."""
    x = maps[-1]
    for block, skip in zip(blocks, [*maps[-2::-1], None], strict=False):
        x = block(x, skip)
    return x


def encoder_widths(backbone: FlexibleUNet) -> tuple[int, ...]:
    """Channels of the encoder's five maps: stem, layer1 to layer4."""
    return tuple(FLEXUNET_BACKBONE.register_dict[backbone.backbone]["feature_channel"])


def decoder_widths(backbone: FlexibleUNet) -> tuple[int, ...]:
    """Channels of the decoder's map after each of its five blocks."""
    return tuple(block.convs.conv_1.conv.out_channels for block in backbone.decoder.blocks)

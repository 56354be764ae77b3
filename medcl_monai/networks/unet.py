"""MONAI's BasicUNet in pieces: its encoder, the stages of its decoder, and their widths."""

from monai.networks.nets import BasicUNet
from torch import Tensor

from medcl_monai.networks.encode import decode, encode, encoder_parts, encoder_widths

STAGES = 4
ENCODER = ("conv_0.", "down_1.", "down_2.", "down_3.", "down_4.")
DECODER = ("upcat_4.", "upcat_3.", "upcat_2.", "upcat_1.")


@encode.register
def _(backbone: BasicUNet, x: Tensor) -> list[Tensor]:
    maps = [backbone.conv_0(x)]
    for stage in (backbone.down_1, backbone.down_2, backbone.down_3, backbone.down_4):
        maps.append(stage(maps[-1]))
    return maps


@encoder_widths.register
def _(backbone: BasicUNet) -> tuple[int, ...]:
    stages = (backbone.down_1, backbone.down_2, backbone.down_3, backbone.down_4)
    return tuple(convs.conv_1.conv.out_channels for convs in (backbone.conv_0, *(stage.convs for stage in stages)))


@encoder_parts.register
def _(backbone: BasicUNet) -> tuple[str, ...]:
    return tuple(prefix.removesuffix(".") for prefix in ENCODER)


@decode.register
def _(unet: BasicUNet, maps: list[Tensor], stages: int | None = None) -> Tensor:
    # after all stages, unet.final_conv gives the network's own output, bit for bit
    x = maps[-1]
    decoder = (unet.upcat_4, unet.upcat_3, unet.upcat_2, unet.upcat_1)
    for stage, skip in zip(decoder[: check_stages(STAGES if stages is None else stages)], maps[-2::-1], strict=False):
        x = stage(x, skip)
    return x


def widths(unet: BasicUNet) -> tuple[int, ...]:
    """Return the number of channels of the decoder's map after 0, 1, 2, 3 and 4 stages."""
    stages = (unet.down_4, unet.upcat_4, unet.upcat_3, unet.upcat_2, unet.upcat_1)
    return tuple(stage.convs.conv_1.conv.out_channels for stage in stages)


def spatial_dims(unet: BasicUNet) -> int:
    """Return the number of spatial axes, 1 to 3."""
    return unet.conv_0.conv_0.conv.weight.ndim - 2


def check_stages(stages: int) -> int:
    """Return `stages`, if the decoder has that many stages.

    Raises:
        ValueError: the decoder has fewer stages, or `stages` is negative.
    """
    if stages not in range(STAGES + 1):
        raise ValueError(f"stages must be 0 to {STAGES}, got {stages}")
    return stages

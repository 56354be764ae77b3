"""MONAI's SwinTransformer and SwinUNETR, which contains one: the encoder's maps are the transformer's hidden states."""

from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor

from medcl_monai.networks.encode import encode, encoder_parts, encoder_widths

MAPS = 5  # one map of the patch embedding, and one map of each of the four stages


@encode.register
def _(backbone: SwinTransformer, x: Tensor) -> list[Tensor]:
    return backbone(x)


@encode.register
def _(backbone: SwinUNETR, x: Tensor) -> list[Tensor]:
    # the blocks encoder1 to encoder10 are left out, because pre-trained weights of the transformer do not have them
    return backbone.swinViT(x, backbone.normalize)


@encoder_widths.register
def _(backbone: SwinTransformer) -> tuple[int, ...]:
    return tuple(backbone.embed_dim * 2**stage for stage in range(MAPS))


@encoder_widths.register
def _(backbone: SwinUNETR) -> tuple[int, ...]:
    return encoder_widths(backbone.swinViT)


@encoder_parts.register
def _(backbone: SwinTransformer) -> tuple[str, ...]:
    return tuple(name for name, _ in backbone.named_children())


@encoder_parts.register
def _(backbone: SwinUNETR) -> tuple[str, ...]:
    return ("swinViT",)

"""Swin-Unet: a Swin transformer as encoder, and a mirrored decoder of Swin blocks with skip connections."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from monai.networks.nets.swin_unetr import BasicLayer, SwinTransformer
from torch import Tensor, nn

from medcl_monai.knobs import knob_types
from medcl_monai.networks.encode import decode, encode, encoder_parts, encoder_widths

STAGES = 4
HEAD_WIDTH = 32  # channels per attention head, as in Swin


class SwinUNet(nn.Module):
    """Segmenter of Swin blocks only: four stages down, three stages up, linear skip connections.

    The network is Swin-Unet (Cao et al. 2021, https://arxiv.org/abs/2105.05537) built from MONAI's Swin blocks. The
    encoder ``swinViT`` is MONAI's `SwinTransformer` without its fourth merging, under the name that SwinUNETR uses, so
    weights of one serve the other. ``norm`` follows the last stage.

    Args:
        spatial_dims: number of spatial axes: 2 (slices) or 3 (volumes).
        in_channels: number of channels of the images.
        out_channels: number of classes, background included.
        patch_size: side of a patch in pixels or voxels; each side of an image is a multiple of 8 patches.
        embed_dim: number of channels of the first stage, which has max(1, embed_dim // 32) attention heads; each stage
            doubles both numbers.
        depths: number of Swin blocks of each of the four stages; the decoder has the numbers of stages 3, 2 and 1.
        window_size: side of the attention windows, in patches of the stage.
        drop_path_rate: probability that the last block of the encoder is skipped in training, 0 up to 1; the
            probability rises linearly from 0 over the blocks.

    Raises:
        ValueError: a number is out of range; in `forward`: a side of the image is no multiple of 8 patches.

    Example:
        >>> network = SwinUNet(2, out_channels=3, patch_size=2, embed_dim=24, window_size=4)
        >>> network(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 3, 64, 64])
    """

    @knob_types
    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        out_channels: int = 2,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        window_size: int = 7,
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        heads = max(1, embed_dim // HEAD_WIDTH)
        if spatial_dims not in (2, 3) or len(depths) != STAGES or min(patch_size, window_size, *depths) < 1:
            raise ValueError(
                f"{type(self).__name__}: spatial_dims must be 2 or 3, depths {STAGES} numbers from 1, patch_size and "
                f"window_size at least 1; got {spatial_dims}, {tuple(depths)}, {patch_size} and {window_size}"
            )
        if embed_dim < 1 or embed_dim % heads or not 0 <= drop_path_rate < 1:
            raise ValueError(
                f"{type(self).__name__}: embed_dim {embed_dim} must be a multiple of its {heads} attention heads, "
                f"drop_path_rate {drop_path_rate} 0 up to 1"
            )
        self.spatial_dims, self.patch_size, self.window_size = spatial_dims, patch_size, window_size
        self.swinViT = SwinTransformer(
            in_channels, embed_dim, (window_size,) * spatial_dims, (patch_size,) * spatial_dims, depths,
            [heads * 2**stage for stage in range(STAGES)], drop_path_rate=drop_path_rate, patch_norm=True,
            spatial_dims=spatial_dims,
        )
        self.swinViT.layers4[0].downsample = None  # MONAI merges a fourth time, Swin does not
        self.norm = nn.LayerNorm(8 * embed_dim)
        self.decoder = SwinDecoder(spatial_dims, embed_dim, heads, patch_size, depths, window_size, drop_path_rate)
        self.out = (nn.Conv2d if spatial_dims == 2 else nn.Conv3d)(embed_dim, out_channels, kernel_size=1)
        self.apply(_initialise)

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch classes *size"]:
        """Return the logits of the classes."""
        return self.out(self.decoder.head(decode(self, encode(self, x))))

    def check_size(self, size: Sequence[int]) -> None:
        """Raise ValueError if a side of an image is not a multiple of 8 patches."""
        multiple = 2 ** (STAGES - 1) * self.patch_size
        if wrong := [side for side in size if side % multiple]:
            raise ValueError(
                f"{type(self).__name__}: side {wrong[0]} of {tuple(size)} is not a multiple of {multiple} = "
                f"8 x patch_size {self.patch_size}"
            )


class SwinUNet2D(SwinUNet):
    """A `SwinUNet` of slices (B, C, H, W)."""

    def __init__(self, *arguments: object, **knobs: object) -> None:
        super().__init__(2, *arguments, **knobs)


class SwinUNet3D(SwinUNet):
    """A `SwinUNet` of volumes (B, C, D, H, W)."""

    def __init__(self, *arguments: object, **knobs: object) -> None:
        super().__init__(3, *arguments, **knobs)


class SwinDecoder(nn.Module):
    """The way up of a `SwinUNet`: three times expand, join the skip connection, two Swin blocks; then back to pixels.

    The arguments are those of `SwinUNet`; `heads` is the number of attention heads of the first stage.
    """

    def __init__(
        self, spatial_dims: int, embed_dim: int, heads: int, patch_size: int, depths: Sequence[int], window_size: int,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        stages = range(STAGES - 2, -1, -1)  # the stage of the encoder whose input is the skip connection
        rates = torch.linspace(0, drop_path_rate, sum(depths)).tolist()
        self.expand = nn.ModuleList(
            PatchExpanding(spatial_dims, 2 * embed_dim * 2**stage, embed_dim * 2**stage, 2) for stage in stages
        )
        self.skip = nn.ModuleList(nn.Linear(2 * embed_dim * 2**stage, embed_dim * 2**stage) for stage in stages)
        self.layers_up = nn.ModuleList(
            BasicLayer(
                embed_dim * 2**stage, depths[stage], heads * 2**stage, (window_size,) * spatial_dims,
                rates[sum(depths[:stage]) : sum(depths[: stage + 1])], qkv_bias=True,
            )
            for stage in stages
        )
        self.norm_up = nn.LayerNorm(embed_dim)
        self.final = PatchExpanding(spatial_dims, embed_dim, embed_dim, patch_size)

    def stages(self, maps: Sequence[Tensor], count: int) -> Tensor:
        """Return the map after `count` stages; `maps` are those of the encoder, finest first."""
        x = maps[STAGES]
        for stage in range(count):
            x = self.expand[stage](x)
            x = channels_first(self.skip[stage](channels_last(torch.cat([x, maps[STAGES - 2 - stage]], 1))))
            x = self.layers_up[stage](x)
        return x

    def head(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch channels *pixels"]:
        """Bring the map of the last stage to the grid of the image."""
        return self.final(channels_first(self.norm_up(channels_last(x))))


class PatchExpanding(nn.Module):
    """Enlarges a map: a linear layer makes the channels of all new positions, a layer norm follows.

    Args:
        spatial_dims: number of spatial axes, D.
        in_channels: number of channels of the map.
        out_channels: number of channels of the larger map.
        factor: how many times longer each side becomes.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.shape = (factor,) * spatial_dims
        self.expand = nn.Linear(in_channels, math.prod(self.shape) * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch width *larger"]:
        """Return the larger map."""
        dims, size = len(self.shape), x.shape[2:]
        x = self.expand(channels_last(x)).unflatten(-1, (*self.shape, -1))
        pairs = [axis for place in range(dims) for axis in (1 + place, 1 + dims + place)]  # d, f_d, h, f_h, …
        x = x.permute(0, *pairs, x.ndim - 1)
        larger = [side * self.shape[0] for side in size]
        return channels_first(self.norm(x.reshape(x.shape[0], *larger, x.shape[-1])))


def channels_last(x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch *size channels"]:
    """Move the channels to the end, where linear layers and layer norms work."""
    return x.permute(0, *range(2, x.ndim), 1)  # not movedim, of which the older ONNX exporter makes an invalid file


def channels_first(x: Float[Tensor, "batch *size channels"]) -> Float[Tensor, "batch channels *size"]:
    """Move the channels from the end to their place behind the batch."""
    return x.permute(0, x.ndim - 1, *range(1, x.ndim - 1))


def _initialise(module: nn.Module) -> None:
    """Start a linear layer as in Swin."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@encode.register
def _(backbone: SwinUNet, x: Tensor) -> list[Tensor]:
    if not torch.jit.is_tracing():
        backbone.check_size(x.shape[2:])
    *maps, last = backbone.swinViT(x, normalize=False)
    return [*maps, channels_first(backbone.norm(channels_last(last)))]


@decode.register
def _(backbone: SwinUNet, maps: list[Tensor], stages: int | None = None) -> Tensor:
    stages = STAGES - 1 if stages is None else stages
    if not 0 <= stages < STAGES:
        raise ValueError(f"decode: stages must be 0 to {STAGES - 1}, got {stages}")
    return backbone.decoder.stages(maps, stages)


@encoder_widths.register
def _(backbone: SwinUNet) -> tuple[int, ...]:
    width = backbone.swinViT.embed_dim
    return (*(width * 2**stage for stage in range(STAGES)), width * 2 ** (STAGES - 1))


@encoder_parts.register
def _(backbone: SwinUNet) -> tuple[str, ...]:
    return ("swinViT", "norm")

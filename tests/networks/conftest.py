"""Small networks of every backbone that has a case of `encode`, and the way from the encoder's maps to the output."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from monai.networks.nets import BasicUNet, DynUNet, FlexibleUNet, SegResNet, SwinUNETR, UNet
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.networks.nets.unet import CheckpointUNet
from torch import Tensor, nn

from medcl_monai.networks.encode import decode
from medcl_monai.networks.swin_unet import SwinUNet

HEADS = (1, 1, 2, 2)


@dataclass(frozen=True)
class Backbone:
    """A backbone and what is expected of it.

    Attributes:
        build: builds the network for a number of spatial axes, with one input channel and two classes.
        finish: returns the network's output, given the network, the maps of its encoder and the image.
        strides: stride of each map relative to the map before it; the first map relative to the image.
    """

    build: Callable[[int], nn.Module]
    finish: Callable[[nn.Module, list[Tensor], Tensor], Tensor | list[Tensor]]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A backbone for images with a number of spatial axes."""

    backbone: Backbone
    dims: int

    def network(self) -> nn.Module:
        return self.backbone.build(self.dims)

    def image(self) -> Tensor:
        """Return images with sides that are multiples of 32; the coarsest map has more than one position."""
        return torch.randn(2, 1, *((32, 64) if self.dims == 2 else (32, 32, 64)))


def finish_unet(network, maps, image):
    inside = ".1.submodule.module" if isinstance(network, CheckpointUNet) else ".1.submodule"
    x = maps[-1]
    for level in range(len(maps) - 2, -1, -1):
        x = network.get_submodule(f"model{inside * level}.2")(torch.cat([maps[level], x], 1))
    return x


def finish_dynunet(network, maps, image):
    x = maps[-1]
    for upsample, skip in zip(network.upsamples, maps[-2::-1], strict=True):
        x = upsample(x, skip)
    return network.output_block(x)


def finish_swin_unetr(network, maps, image):
    x = network.decoder5(network.encoder10(maps[4]), maps[3])
    x = network.decoder4(x, network.encoder4(maps[2]))
    x = network.decoder3(x, network.encoder3(maps[1]))
    x = network.decoder2(x, network.encoder2(maps[0]))
    return network.out(network.decoder1(x, network.encoder1(image)))


BACKBONES = {
    "BasicUNet": Backbone(
        lambda dims: BasicUNet(dims, 1, 2, (4, 8, 12, 16, 20, 4), norm="batch"),
        lambda network, maps, image: network.final_conv(decode(network, maps)), (1, 2, 2, 2, 2),
    ),
    "FlexibleUNet": Backbone(
        lambda dims: FlexibleUNet(1, 2, "resnet10", spatial_dims=dims),
        lambda network, maps, image: network.segmentation_head(decode(network, maps)), (2, 2, 2, 2, 2),
    ),
    "UNet": Backbone(
        lambda dims: UNet(dims, 1, 2, (4, 8, 12), (2, 2), norm="batch"), finish_unet, (2, 2, 1),
    ),
    "UNet of residual units": Backbone(
        lambda dims: UNet(dims, 1, 2, (4, 8, 12, 16), (2, 2, 2), num_res_units=2), finish_unet, (2, 2, 2, 1),
    ),
    "UNet with checkpoints": Backbone(
        lambda dims: CheckpointUNet(dims, 1, 2, (4, 8, 12), (2, 2)), finish_unet, (2, 2, 1),
    ),
    "DynUNet": Backbone(
        lambda dims: DynUNet(dims, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, (4, 8, 12, 16), norm_name="batch"),
        finish_dynunet, (1, 2, 2, 2),
    ),
    "DynUNet of residual blocks with deep supervision": Backbone(
        lambda dims: DynUNet(
            dims, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, (4, 8, 12, 16), res_block=True, deep_supervision=True
        ),
        finish_dynunet, (1, 2, 2, 2),
    ),
    "SegResNet": Backbone(
        lambda dims: SegResNet(dims, norm="batch"),
        lambda network, maps, image: network.decode(maps[-1], maps[::-1]), (1, 2, 2, 2),
    ),
    "SegResNet with dropout": Backbone(
        lambda dims: SegResNet(dims, dropout_prob=0.5, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
        lambda network, maps, image: network.decode(maps[-1], maps[::-1]), (1, 2, 2),
    ),
    "SwinTransformer": Backbone(
        lambda dims: SwinTransformer(1, 8, [4] * dims, [2] * dims, [1] * 4, HEADS, drop_rate=0.5, spatial_dims=dims),
        lambda network, maps, image: maps, (2, 2, 2, 2, 2),
    ),
    "SwinUNet": Backbone(
        lambda dims: SwinUNet(dims, 1, 2, patch_size=2, embed_dim=8, depths=[1] * 4, window_size=2),
        lambda network, maps, image: network.out(network.decoder.head(decode(network, maps))), (2, 2, 2, 2, 1),
    ),
    "SwinUNETR": Backbone(
        lambda dims: SwinUNETR(
            1, 2, depths=[1] * 4, num_heads=HEADS, window_size=4, feature_size=12, spatial_dims=dims
        ),
        finish_swin_unetr, (2, 2, 2, 2, 2),
    ),
    "SwinUNETR version 2 without normalisation": Backbone(
        lambda dims: SwinUNETR(
            1, 2, depths=[1] * 4, num_heads=HEADS, window_size=4, feature_size=12, spatial_dims=dims, use_v2=True,
            normalize=False,
        ),
        finish_swin_unetr, (2, 2, 2, 2, 2),
    ),
}


@pytest.fixture(params=[(dims, name) for dims in (2, 3) for name in BACKBONES], ids="{0[0]}D {0[1]}".format)
def case(request):
    dims, name = request.param
    return Case(BACKBONES[name], dims)

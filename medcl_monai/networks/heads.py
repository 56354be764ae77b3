"""Heads that follow a backbone."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from medcl_monai.networks.batch_norm import GlobalBatchNorm


class PooledHead(nn.Module):
    """Averages a map (B, C, *S) over its positions, and turns the average into an embedding by Linear, ReLU, Linear.

    Args:
        in_channels: number of channels of the map, C.
        projection_dim: width of the hidden layer and of the embedding, in channels.
    """

    def __init__(self, in_channels: int, projection_dim: int) -> None:
        super().__init__()
        self.layers = projector(in_channels, projection_dim, projection_dim)

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding, which is not normalised."""
        return self.layers(x.flatten(2).mean(2))


def pooled(x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch channels"]:
    """Average a map over its positions, in fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).flatten(2).mean(2)


def projector(in_channels: int, hidden: int, out_channels: int, bias: bool = True) -> nn.Sequential:
    """Build the layers Linear, ReLU, Linear, which project embeddings; `bias`: whether the linear layers have one."""
    first, last = nn.Linear(in_channels, hidden, bias), nn.Linear(hidden, out_channels, bias)
    return nn.Sequential(first, nn.ReLU(inplace=True), last)


def normed_projector(widths: Sequence[int]) -> nn.Sequential:
    """Build the projector or the predictor of MoCo v3: linear layers without bias, each followed by a batch norm.

    A ReLU follows each batch norm but the last, which has no scale and no shift (Chen, Xie and He 2021, section 4.3 and
    the released code's heads, https://arxiv.org/abs/2104.02057). The statistics are those of all processes.

    Args:
        widths: number of channels of the input, of each hidden layer and of the output.
    """
    layers: list[nn.Module] = []
    for place, (width, out) in enumerate(pairwise(widths)):
        last = place == len(widths) - 2
        layers += [nn.Linear(width, out, bias=False), GlobalBatchNorm(out, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def pointwise_head(spatial_dims: int, in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    """Build a `projector` for each position of a map: two convolutions of kernel size 1 with a ReLU between."""
    return nn.Sequential(
        Convolution(spatial_dims, in_channels, hidden, kernel_size=1, conv_only=True),
        nn.ReLU(inplace=True),
        Convolution(spatial_dims, hidden, out_channels, kernel_size=1, conv_only=True),
    )


def dense_head(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """Build two convolutions of kernel size 3, each with batch norm and LeakyReLU (slope 0.01).

    The map keeps its size.
    """
    act = ("LeakyReLU", {"negative_slope": 0.01})
    return nn.Sequential(*(
        Convolution(spatial_dims, channels, out_channels, kernel_size=3, act=act, norm="batch")
        for channels in (in_channels, out_channels)
    ))

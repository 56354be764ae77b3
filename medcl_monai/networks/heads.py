"""Heads that follow a backbone."""

from jaxtyping import Float
from monai.networks.blocks import Convolution
from torch import Tensor, nn


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


def projector(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    """Build the layers Linear, ReLU, Linear, which project embeddings."""
    return nn.Sequential(nn.Linear(in_channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_channels))


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

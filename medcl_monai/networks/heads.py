"""Heads after a backbone."""

from jaxtyping import Float
from monai.networks.blocks import Convolution
from torch import Tensor, nn


class PooledHead(nn.Module):
    """Global average of a map (B, C, *S), then Linear, ReLU, Linear: an embedding (B, projection_dim).

    Args:
        in_channels: of the map.
        projection_dim: width of the hidden layer and of the embedding.
    """

    def __init__(self, in_channels: int, projection_dim: int) -> None:
        super().__init__()
        self.layers = projector(in_channels, projection_dim, projection_dim)

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch dim"]:
        """The embedding, not normalised."""
        return self.layers(x.flatten(2).mean(2))


def projector(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    """Linear, ReLU, Linear on embeddings."""
    return nn.Sequential(nn.Linear(in_channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_channels))


def pointwise_head(spatial_dims: int, in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    """The same on each position of a map: two convolutions, 1 wide, with a ReLU between."""
    return nn.Sequential(
        Convolution(spatial_dims, in_channels, hidden, kernel_size=1, conv_only=True),
        nn.ReLU(inplace=True),
        Convolution(spatial_dims, hidden, out_channels, kernel_size=1, conv_only=True),
    )


def dense_head(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """Two convolutions (3 wide, batch norm, LeakyReLU 0.01) on a map; the size stays."""
    act = ("LeakyReLU", {"negative_slope": 0.01})
    return nn.Sequential(*(
        Convolution(spatial_dims, channels, out_channels, kernel_size=3, act=act, norm="batch")
        for channels in (in_channels, out_channels)
    ))

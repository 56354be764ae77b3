"""Heads after a backbone, and the start of a segmenter's output layer."""

import torch
from jaxtyping import Float
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from medcl_monai.transfer.load import Transfer


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


@torch.no_grad()
def start_at_log_shares(network: nn.Module, shares: Float[Tensor, " classes"], transfer: Transfer) -> None:
    """Set the bias of the output layer to the log of the class shares, so that training does not start at background.

    The output layer is the last convolution that gives one channel per class. Where `transfer` carried its bias, it
    stays as it is: a segmenter that was carried whole needs no new start.

    Args:
        network: the segmenter; its output layer is changed in place.
        shares: of each class among the training labels' voxels, above 0, background first.
        transfer: the report of the weights that were carried before.

    Raises:
        ValueError: a share is not above 0, or no convolution with a bias has that many outputs.
    """
    if not bool((shares > 0).all()):
        raise ValueError(f"start_at_log_shares: every class share must be above 0, got {shares.tolist()}")
    convolutions = (nn.Conv2d, nn.Conv3d)
    outputs = [
        (name, layer)
        for name, layer in network.named_modules()
        if isinstance(layer, convolutions) and layer.out_channels == len(shares) and layer.bias is not None
    ]
    if not outputs:
        raise ValueError(f"{type(network).__name__} has no output convolution with {len(shares)} channels and a bias")
    name, layer = outputs[-1]
    if f"{name}.bias" not in transfer.carried:
        layer.bias.copy_(shares.log())

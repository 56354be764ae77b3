"""The start of a segmenter's output layer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcl_monai.transfer.load import Transfer


@torch.no_grad()
def start_at_log_shares(
    network: nn.Module, layer: str, shares: Float[Tensor, " classes"], transfer: Transfer
) -> None:
    """Set the bias of the output layer to the log of the class shares, so that training does not start at background.

    Where `transfer` carried that bias, it stays as it is: a segmenter that was carried whole needs no new start.

    Args:
        network: the segmenter; its output layer is changed in place.
        layer: name of the output layer, a convolution with a bias and one channel per class.
        shares: of each class among the training labels' voxels, above 0, background first.
        transfer: the report of the weights that were carried before.

    Raises:
        ValueError: a share is not above 0, or the network has no such layer.
    """
    if not bool((shares > 0).all()):
        raise ValueError(f"start_at_log_shares: every class share must be above 0, got {shares.tolist()}")
    layers = dict(network.named_modules())
    output = layers.get(layer)
    if not isinstance(output, nn.Conv2d | nn.Conv3d) or output.bias is None or output.out_channels != len(shares):
        known = [
            name for name, part in layers.items()
            if isinstance(part, nn.Conv2d | nn.Conv3d) and part.bias is not None and part.out_channels == len(shares)
        ]
        raise ValueError(
            f"{type(network).__name__}: layer {layer!r} is no output convolution with a bias and {len(shares)} "
            f"channels; these are: {known}"
        )
    if f"{layer}.bias" not in transfer.carried:
        output.bias.copy_(shares.log())

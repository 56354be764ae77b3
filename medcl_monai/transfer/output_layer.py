"""Initialisation of the output layer of a segmenter."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcl_monai.transfer.load import Transfer


@torch.no_grad()
def start_at_log_shares(
    network: nn.Module, layer: str, shares: Float[Tensor, " classes"], transfer: Transfer
) -> None:
    """Set the bias of the output layer to the log of the class shares, unless `transfer` copied the bias.

    The softmax of the new bias equals the class shares, so training need not first learn that most voxels are
    background. If `transfer` copied the bias from a file, the bias stays as it is: a segmenter that was loaded whole
    needs no new bias.

    Args:
        network: the segmenter, whose output layer is changed in place.
        layer: name of the output layer, a convolution with a bias and one output channel per class.
        shares: share of each class in the voxels of the training labels, above 0, background first.
        transfer: report of the weights that were loaded before, which names the carried tensors.

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
    if not transfer.copied or f"{layer}.bias" not in transfer.carried:
        output.bias.copy_(shares.log())

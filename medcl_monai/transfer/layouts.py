"""Conversion of weights in other layouts to the names and shapes of MONAI's networks."""

from collections.abc import Mapping

from torch import Tensor

ENCODER = "encoder."


def residual_encoder(weights: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a residual network to the names of FlexibleUNet's encoder.

    The tensors in torchvision's layout (``conv1.weight``, ``layer1.0.conv1.weight``, …, ``fc.weight``) get the prefix
    ``encoder.``, and the classifier is left out. If the network reads one channel, the first convolution is summed over
    RGB; for a grey image, the result is the same as with three equal channels. Tensors that have the prefix already
    keep their names.

    Args:
        weights: tensors of the file, by name.
        network: tensors of the network, by name.

    Raises:
        ValueError: the encoder in the file is not the encoder of the network.
    """
    if any(name.startswith(ENCODER) for name in weights):
        renamed = dict(weights)
    else:
        renamed = {f"{ENCODER}{name}": value for name, value in weights.items() if not name.startswith("fc.")}
    theirs, ours = ({name for name in part if name.startswith(ENCODER)} for part in (renamed, network))
    if weights and theirs != ours:
        lone = sorted(theirs ^ ours)
        raise ValueError(
            f"the weights are of another encoder: {len(theirs)} tensors, {len(ours)} are expected; "
            f"only one of the two has {lone[0]!r}"
        )
    first = f"{ENCODER}conv1.weight"
    if weights and renamed[first].shape[1] == 3 and network[first].shape[1] == 1:
        renamed[first] = renamed[first].sum(1, keepdim=True)
    return renamed

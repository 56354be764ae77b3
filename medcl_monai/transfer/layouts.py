"""Weights of other layouts, brought to the names and shapes of MONAI's networks."""

from collections.abc import Mapping

from torch import Tensor

ENCODER = "encoder."


def residual_encoder(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A residual network's tensors under the names of FlexibleUNet's encoder.

    torchvision's layout (``conv1.weight``, ``layer1.0.conv1.weight``, …, ``fc.weight``) gets the prefix, its classifier
    is left out, and its first convolution is summed over RGB where the network reads one channel: on a grey image that
    is the same as three equal channels. Weights that carry the prefix already stay as they are.

    Args:
        weights: name to tensor, of the file.
        own: name to tensor, of the network.

    Raises:
        ValueError: the file's encoder is another one than the network's.
    """
    if any(name.startswith(ENCODER) for name in weights):
        renamed = dict(weights)
    else:
        renamed = {f"{ENCODER}{name}": value for name, value in weights.items() if not name.startswith("fc.")}
    theirs, ours = ({name for name in part if name.startswith(ENCODER)} for part in (renamed, own))
    if weights and theirs != ours:
        lone = sorted(theirs ^ ours)
        raise ValueError(
            f"the weights are of another encoder: {len(theirs)} tensors, {len(ours)} are expected; "
            f"only one of the two has {lone[0]!r}"
        )
    first = f"{ENCODER}conv1.weight"
    if weights and renamed[first].shape[1] == 3 and own[first].shape[1] == 1:
        renamed[first] = renamed[first].sum(1, keepdim=True)
    return renamed

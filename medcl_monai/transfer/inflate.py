"""Weights of a 2D Swin network for the 3D network of the same widths."""

import re
from collections.abc import Mapping

from torch import Tensor

from medcl_monai.networks.merging import MARK

STEM, TABLE = "patch_embed.proj.weight", "relative_position_bias_table"
# corners (depth, height, width) of a 2 x 2 x 2 cell in MONAI's present order, and the 2D order of (height, width)
CORNERS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
PLANE = ((0, 0), (1, 0), (0, 1), (1, 1))


def inflate(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inflate the weights of a 2D `SwinUNet` or SwinTransformer for 3D, so that the network ignores depth at first.

    On a volume that is constant along its depth, the 3D network gives the maps of the 2D network, wherever the windows
    divide the grid of each stage (the idea of Carreira and Zisserman 2017, https://arxiv.org/abs/1705.07750, for Swin
    in Video Swin, https://arxiv.org/abs/2106.13230). Patch kernels are repeated along depth and divided by the patch;
    tables of relative positions are repeated; the merging gets each plane corner twice at half the weight.

    Args:
        weights: tensors of the 2D network, under the network's names.
        own: tensors of the 3D network, by name, which decide the patch and the number of repetitions.

    Returns:
        The tensors for the 3D network. Weights that are 3D already are returned as they are.

    Raises:
        ValueError: the network merges in the legacy order, for which no inflation is exact.
    """
    stem = next((name for name in weights if name.endswith(STEM)), None)
    if stem is None or stem not in own or weights[stem].ndim == own[stem].ndim:
        return dict(weights)
    if any(name.endswith(MARK) for name in own):
        raise ValueError("inflate: the legacy order of merging joins two corners twice: leave downsample out")
    return {name: _inflated(name, value, own.get(name)) for name, value in weights.items()}


def _inflated(name: str, value: Tensor, own: Tensor | None) -> Tensor:
    if own is None or value.shape == own.shape:
        return value
    if name.endswith(STEM):
        depth = own.shape[2]
        return value[:, :, None].expand(-1, -1, depth, -1, -1) / depth
    if name.endswith(TABLE):
        return value.repeat(round(len(value) ** 0.5), 1)  # one table per difference in depth, outermost
    if ".downsample." in name:
        chunks = value.unflatten(-1, (len(PLANE), -1))
        chosen = chunks[..., [PLANE.index(corner[1:]) for corner in CORNERS], :].flatten(-2)
        return chosen / 2 if name.endswith("reduction.weight") else chosen
    if re.search(r"(^|\.)(expand\.\d+\.expand|final\.expand)\.weight$", name):
        return value.repeat(len(own) // len(value), 1)  # the new position along depth is the outermost
    return value[:, :, None] if value.ndim == 4 else value  # the output layer gets an axis

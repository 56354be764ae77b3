"""The patch merging of MONAI up to 1.4, with which the public 3D Swin weights were trained."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import Tensor, nn

MARK = "legacy_order"  # name of the buffer that marks weights of this order
# corners (d, h, w) of a 2 x 2 x 2 cell in the order in which their channels are joined; two corners stand twice
ORDER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class LegacyPatchMerging(PatchMergingV2):
    """Joins patches of volumes in the order of MONAI 1.4 and earlier, for weights that were trained in this order.

    MONAI 1.5 changed the order under the name ``downsample="merging"``; the names and shapes of the weights stayed the
    same. In the other order, the feature maps of the public 3D files differ by about half of their size. The layer norm
    runs over the joined channels, so reordering the weights does not help.

    The buffer ``legacy_order`` marks the weights: a network with this layer and a network without it refuse each
    other's weights in strict loading. The layer is for 3D networks; the order of 2D networks never changed.

    Args:
        dim: number of channels of a patch.
        norm_layer: class of the norm layer.
        spatial_dims: number of spatial axes, 3.

    Raises:
        ValueError: `spatial_dims` is not 3.

    Example:
        In ``network_def`` of train.json and of inference.json alike: ``"downsample": {"_target_":
        "medcl_monai.LegacyPatchMerging", "_mode_": "callable"}``.
    """

    def __init__(self, dim: int, norm_layer: type[nn.LayerNorm] = nn.LayerNorm, spatial_dims: int = 3) -> None:
        if spatial_dims != 3:
            raise ValueError(f"LegacyPatchMerging is for 3 spatial axes, got {spatial_dims}: use 'merging' instead")
        super().__init__(dim, norm_layer, spatial_dims)
        self.register_buffer(MARK, torch.tensor(ORDER))

    def forward(self, x: Float[Tensor, "batch depth height width channels"]) -> Float[Tensor, "batch d h w wider"]:
        """Merge each cell of 2 x 2 x 2 patches; an odd side is padded with 0 at its end."""
        depth, height, width = x.shape[1:4]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
        return self.reduction(self.norm(torch.cat([x[:, d::2, h::2, w::2] for d, h, w in ORDER], -1)))

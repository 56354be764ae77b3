"""Linear evaluation: what a frozen encoder's maps tell, read by one linear layer."""

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.nets import FlexibleUNet
from torch import Tensor, nn

from medcl_monai.networks.flexible_unet import encoder_widths


class LinearProbe(nn.Module):
    """A segmenter whose only trained part is a 1 wide convolution on the maps of a frozen encoder.

    The maps are enlarged to the input, put side by side and mapped to classes. As both steps are linear, each map is
    mapped at its own size first, which is the same and saves memory. The encoder gets no gradient and stays in
    ``eval()``, so that its norm statistics stand still; its tensors keep the names that they have in the backbone.

    Args:
        backbone: MONAI's FlexibleUNet, whose encoder is read and whose decoder is left out.
        out_channels: number of classes.
    """

    def __init__(self, backbone: FlexibleUNet, out_channels: int) -> None:
        super().__init__()
        self.encoder = backbone.encoder.requires_grad_(False)
        widths = encoder_widths(backbone)
        self.classifiers = nn.ModuleList(
            Convolution(backbone.spatial_dims, width, out_channels, kernel_size=1, conv_only=True, bias=width_is_last)
            for width, width_is_last in zip(widths, [False] * (len(widths) - 1) + [True], strict=True)
        )
        self.mode = "bilinear" if backbone.spatial_dims == 2 else "trilinear"
        self.train(self.training)

    def train(self, mode: bool = True) -> "LinearProbe":
        """Train mode, in which the encoder stays as in `eval`."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, *S) of images (B, C, *S)."""
        maps = self.encoder(x)
        logits: list[Tensor] = []
        for place, classify in enumerate(self.classifiers):  # as TorchScript reads it
            found = classify(maps[place])
            logits.append(F.interpolate(found, size=x.shape[2:], mode=self.mode, align_corners=False))
        return torch.stack(logits).sum(0)

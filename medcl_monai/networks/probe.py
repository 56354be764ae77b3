"""Linear evaluation: one linear layer reads the maps of a frozen encoder."""

from collections.abc import Sequence
from copy import copy
from functools import partial

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from medcl_monai.networks.encode import encode, encoder_parts, encoder_widths

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class LinearProbe(nn.Module):
    """Segments with a frozen encoder; the only trained part is a convolution of kernel size 1 on the encoder's maps.

    The probe enlarges the maps to the size of the input, concatenates the maps, and maps the channels to classes. The
    enlarging and the convolution are linear, so the probe maps each map at its own size first, which gives the same
    logits and saves memory. The encoder gets no gradient and stays in ``eval()``, so its norm statistics do not change.
    The encoder's tensors keep the names that they have in the backbone. ``torch.jit.script`` exports only the probe of
    a FlexibleUNet; ``torch.jit.trace`` exports the probe of every backbone.

    Args:
        backbone: network that has a case of `encode`, `encoder_widths` and `encoder_parts`. The probe shares the
            encoder of this network and freezes it; the probe does not hold the decoder.
        out_channels: number of classes.

    Raises:
        TypeError: this class of backbone has no case.
    """

    def __init__(self, backbone: nn.Module, out_channels: int) -> None:
        super().__init__()
        widths = encoder_widths(backbone)
        encoder = _keep(backbone, encoder_parts(backbone)).requires_grad_(False).eval()
        for name, part in encoder.named_children():
            self.add_module(name, part)
        # inside a partial the encoder is no child of the probe: a child would list its tensors again, under a prefix
        self.read = partial(encode, encoder)
        dims = max(tensor.ndim for tensor in encoder.parameters()) - 2  # a convolution's weight is (out, in, *spatial)
        self.classifiers = nn.ModuleList(
            Convolution(dims, width, out_channels, kernel_size=1, conv_only=True, bias=width_is_last)
            for width, width_is_last in zip(widths, [False] * (len(widths) - 1) + [True], strict=True)
        )
        self.mode = MODES[dims]
        self.train(self.training)

    def train(self, mode: bool = True) -> "LinearProbe":
        """Set the mode of the classifiers; the encoder stays in `eval`."""
        super().train(mode)
        for name, part in self.named_children():
            part.train(mode and name == "classifiers")
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K, *S) for images (B, C, *S)."""
        # TorchScript cannot dispatch by class, but it can call the encoder of a FlexibleUNet, which is one module
        maps = self.encoder(x) if torch.jit.is_scripting() else self.read(x)
        logits: list[Tensor] = []
        for place, classify in enumerate(self.classifiers):  # TorchScript cannot zip a list with modules
            small = classify(maps[place])
            logits.append(F.interpolate(small, size=x.shape[2:], mode=self.mode, align_corners=False))
        return torch.stack(logits).sum(0)


def _keep(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return a module of the same class that shares the named parts, which may be nested, and has no other parts."""
    kept = copy(module)
    kept._modules = {}
    for child, part in module.named_children():
        below = [name.removeprefix(f"{child}.") for name in names if name.startswith(f"{child}.")]
        if child in names or below:
            kept.add_module(child, _keep(part, below) if below else part)
    return kept

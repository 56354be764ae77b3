"""One `encode` for every backbone: the maps of its encoder, finest first."""

from functools import singledispatch

from torch import Tensor, nn


@singledispatch
def encode(backbone: nn.Module, x: Tensor) -> list[Tensor]:
    """Maps of the encoder of `backbone` for images (B, C, *S), finest first; the last is the bottleneck.

    Each backbone class registers its case beside the code that knows its attribute names (`networks/unet.py`).

    Raises:
        TypeError: no case for this class of backbone.
    """
    known = ", ".join(sorted(case.__name__ for case in encode.registry if case is not object))
    raise TypeError(f"encode: no case for {type(backbone).__name__}; there are {known}")

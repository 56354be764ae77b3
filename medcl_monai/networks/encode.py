"""One `encode` and one `decode` for every backbone: the maps of its encoder, finest first, and of its decoder."""

from functools import singledispatch

from torch import Tensor, nn


@singledispatch
def encode(backbone: nn.Module, x: Tensor) -> list[Tensor]:
    """Maps of the encoder of `backbone` for images (B, C, *S), finest first; the last is the bottleneck.

    Each backbone class registers its case beside the code that knows its attribute names (`networks/unet.py`).

    Raises:
        TypeError: no case for this class of backbone.
    """
    raise TypeError(f"encode: no case for {type(backbone).__name__}; there are {_known(encode)}")


@singledispatch
def decode(backbone: nn.Module, maps: list[Tensor], stages: int | None = None) -> Tensor:
    """Decoder map of `backbone` after its first `stages` stages, each with its skip.

    Args:
        backbone: the network.
        maps: what `encode` returns.
        stages: 0 (the bottleneck itself) up to the number of stages; None is all.

    Raises:
        ValueError: `stages` out of range.
        TypeError: no case for this class of backbone.
    """
    raise TypeError(f"decode: no case for {type(backbone).__name__}; there are {_known(decode)}")


def _known(function: object) -> str:
    return ", ".join(sorted(case.__name__ for case in function.registry if case is not object))

"""Functions with one case for each class of backbone: the maps of encoder and decoder, and the encoder's parts."""

from collections.abc import Mapping
from copy import copy
from functools import singledispatch

from torch import Tensor, nn


@singledispatch
def encode(backbone: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the maps of the encoder for images (B, C, *S), finest map first; the last map is the bottleneck.

    Each class of backbone registers its cases of the functions in this file where its attribute names are known, such
    as in `networks/unet.py`.

    Raises:
        TypeError: this class of backbone has no case.
    """
    raise TypeError(f"encode: no case for {type(backbone).__name__}; there are {_known(encode)}")


@singledispatch
def encoder_widths(backbone: nn.Module) -> tuple[int, ...]:
    """Return the number of channels of each map that `encode` returns.

    Raises:
        TypeError: this class of backbone has no case.
    """
    raise TypeError(f"encoder_widths: no case for {type(backbone).__name__}; there are {_known(encoder_widths)}")


@singledispatch
def encoder_parts(backbone: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that `encode` uses; together these modules are the encoder.

    Raises:
        TypeError: this class of backbone has no case.
    """
    raise TypeError(f"encoder_parts: no case for {type(backbone).__name__}; there are {_known(encoder_parts)}")


@singledispatch
def decode(backbone: nn.Module, maps: list[Tensor], stages: int | None = None) -> Tensor:
    """Return the map of the decoder after its first `stages` stages; each stage gets its skip connection.

    Args:
        backbone: the network.
        maps: maps of the encoder, as `encode` returns them.
        stages: number of stages, 0 (the bottleneck itself) to the number that the decoder has; None takes all stages.

    Raises:
        ValueError: `stages` is out of range.
        TypeError: this class of backbone has no case.
    """
    raise TypeError(f"decode: no case for {type(backbone).__name__}; there are {_known(decode)}")


def with_parts(backbone: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """Return the backbone with other modules in place of some of its own, for `encode` and `decode`.

    All else is shared with the backbone, which stays as it is.

    Args:
        backbone: the network.
        parts: modules by the names of the backbone's modules whose places they take.
    """
    shadow = copy(backbone)
    shadow._modules = {**backbone._modules, **parts}
    return shadow


def _known(function: object) -> str:
    return ", ".join(sorted(case.__name__ for case in function.registry if case is not object))

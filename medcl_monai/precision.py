"""A decorator for computations that must not run in half precision."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def full_precision(function: Callable) -> Callable:
    """Decorate a function so that it runs outside autocast and gets its half-precision tensors in fp32.

    Autocast computes matrix products in half precision, even products of fp32 tensors: a loss of 9.3486 became 9.3446
    that way. At least one argument of the function must be a tensor. Tensors in fp64 stay in fp64.

    Example:
        >>> product = full_precision(torch.matmul)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     product(torch.eye(2), torch.eye(2)).dtype, torch.matmul(torch.eye(2), torch.eye(2)).dtype
        (torch.float32, torch.bfloat16)
    """

    @functools.wraps(function)
    def outside_autocast(*arguments: object, **named: object) -> object:
        tensors = [value for value in (*arguments, *named.values()) if isinstance(value, Tensor)]
        if not tensors:
            raise TypeError(f"{function.__name__}: at least one argument must be a tensor")
        with torch.autocast(tensors[0].device.type, enabled=False):
            return function(*map(_single, arguments), **{name: _single(value) for name, value in named.items()})

    return outside_autocast


def _single(value: object) -> object:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype.itemsize < torch.float32.itemsize:
        return value.float()
    return value

"""Functions that convert batches, losses and outputs to the forms that the engines and their handlers read."""

from collections.abc import Iterable, Mapping

import torch
from monai.data import MetaTensor, decollate_batch
from torch import Tensor

SAMPLED = ("image", "label", "pred")  # values that are split into samples; the samples share all others


def to_device(batch: Mapping[str, Tensor], device: torch.device, non_blocking: bool = False) -> dict[str, Tensor]:
    """Move the tensors of a batch to the device.

    Raises:
        ValueError: the batch holds a MetaTensor, whose handling of metadata fails in the middle of the computation.
    """
    for name, value in batch.items():
        if isinstance(value, MetaTensor):
            raise ValueError(f"batch[{name!r}] is a MetaTensor: training reads plain tensors, as `sample_loader` gives")
    return {name: value.to(device, non_blocking=non_blocking) for name, value in batch.items()}


def per_sample(whole: Mapping[str, object]) -> list[dict[str, object]]:
    """Return one dict per sample with its ``image``, ``label`` and ``pred``; all dicts share the remaining values."""
    shared = {name: value for name, value in whole.items() if name not in SAMPLED}
    parts = {name: value for name, value in whole.items() if name in SAMPLED}
    return [{**part, **shared} for part in decollate_batch(parts, detach=True)]


def as_terms(loss: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a loss as a dict of named terms; a scalar loss becomes the term ``loss``.

    Raises:
        ValueError: the loss has no terms, or a term is not a scalar.
    """
    terms = {"loss": loss} if isinstance(loss, Tensor) else dict(loss)
    if not terms:
        raise ValueError("the loss returned no terms: at least one is expected")
    for name, value in terms.items():
        if value.ndim:
            raise ValueError(f"term {name!r} of the loss must be a scalar, got the shape {tuple(value.shape)}")
    return terms


def detached(values: object) -> object:
    """Detach all tensors in nested dicts, lists and tuples from the graph; other values stay as they are.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> detached({"taps": [weight * 2], "name": "x"})
        {'taps': [tensor([2.])], 'name': 'x'}
    """
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, Mapping):
        return {name: detached(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return rebuilt(values, map(detached, values))
    return values


def rebuilt(like: list | tuple, values: Iterable[object]) -> list | tuple:
    """Return values in a list or tuple of the same class as `like`, which may be a named tuple."""
    return type(like)(*values) if hasattr(like, "_fields") else type(like)(values)

"""Carry pre-trained weights into a segmentation network, and say what became of every tensor."""

import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from medcl_monai.knobs import knob_types

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transfer:
    """Names of tensors: the network's fall into the first three parts, `unused` is the rest of the file's.

    Attributes:
        carried: same name and shape: copied.
        reshaped: same name, another shape: left as initialised.
        missing: not in the file: left as initialised.
        unused: in the file only.
        coverage: carried share of the network's elements, 0 to 1.
    """

    carried: tuple[str, ...]
    reshaped: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    coverage: float

    def __str__(self) -> str:
        counts = (f"{len(getattr(self, part))} {part}" for part in ("carried", "reshaped", "missing", "unused"))
        return f"{', '.join(counts)}; {self.coverage:.2%} of the network's elements"


@knob_types
def load_pretrained(
    path: str | Path | None,
    network: nn.Module,
    coverage: float = 0.5,
    keep: Sequence[str] | None = None,
    layout: Callable | None = None,
) -> Transfer:
    """Copy into `network` every tensor of `path` that it has by the same name and shape.

    Args:
        path: weights to start from, a bare state dict under the network's own names as ``models/pretrained.pt``; None
            starts from scratch.
        network: the segmentation network; changed in place, or not at all.
        coverage: least share of the network's elements that must be carried, 0 to 1; not asked from scratch.
        keep: prefixes of the names that are taken from the file; None: all.
        layout: brings weights of another layout to the network's names, given both, as `residual_encoder`; None: they
            have them already.

    Returns:
        The report, which is also logged.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a bare state dict, or less than `coverage` would be carried.
    """
    if not 0 <= coverage <= 1:
        raise ValueError(f"load_pretrained: coverage must be 0 to 1, got {coverage}")
    own = network.state_dict()
    weights = {} if path is None else read_weights(path)
    if bad := [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]:
        raise ValueError(f"{path} is not loaded: its tensor {bad[0]!r} ({len(bad)} in all) is not finite")
    weights = weights if layout is None else layout(weights, own)
    weights = {name: value for name, value in weights.items() if keep is None or name.startswith(tuple(keep))}
    carried = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    report = Transfer(
        carried=tuple(carried),
        reshaped=tuple(name for name in own if name in weights and name not in carried),
        missing=tuple(name for name in own if name not in weights),
        unused=tuple(name for name in weights if name not in own),
        coverage=sum(own[name].numel() for name in carried) / sum(value.numel() for value in own.values()),
    )
    if path is not None and (report.coverage < coverage or not carried):
        raise ValueError(
            f"{path} (first tensor {next(iter(weights), None)!r}, the network's {next(iter(own))!r}): {report}, "
            f"at least {coverage:.0%} asked for (coverage)"
        )
    network.load_state_dict(carried, strict=False)
    logger.info("weights %s: %s", path or "none (from scratch)", report)
    return report


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The bare state dict in a file, on the CPU; read with ``weights_only=True``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds code, or is not a dict of tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: give what a run of pretrain.json has written, or none to start from scratch"
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as weights (damaged, or not a file of tensors): {error}") from error
    if not isinstance(weights, dict):
        raise ValueError(f"{path} is not a bare state dict, but a {type(weights).__name__}")
    foreign = [name for name, value in weights.items() if not isinstance(value, torch.Tensor)]
    if foreign or not weights:
        found = f"{foreign[:3]} are no tensors" if foreign else "it is empty"
        raise ValueError(f"{path} is not a bare state dict: {found}; names and tensors are expected")
    return weights

"""Carry pre-trained weights into a segmentation network, and say what became of every tensor."""

import argparse
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from medcl_monai.knobs import knob_types

logger = logging.getLogger(__name__)


PARTS = ("carried", "reshaped", "missing", "unused", "resized")
WRAPPERS = ("state_dict", "model", "net")  # under which other projects put the tensors of a network into a file


@dataclass(frozen=True)
class Transfer:
    """What became of every tensor when weights were loaded into a network.

    The network's own tensors fall into the first three parts. `resized` names some of the carried tensors again.

    Attributes:
        carried: names of the tensors that the file has under the same name and in the same shape; they were copied.
        reshaped: names that the file has in another shape; the network keeps its own values.
        missing: names that the file lacks; the network keeps its own values.
        unused: names that only the file has.
        coverage: carried share of the network's elements, 0 to 1.
        copied: False: the carried tensors were only named, and the network keeps its own values.
        resized: names of those carried tensors whose values a layout interpolated to the network's shape.
    """

    carried: tuple[str, ...]
    reshaped: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    coverage: float
    copied: bool = True
    resized: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = (f"{len(getattr(self, part))} {part}" for part in PARTS if part != "resized" or self.resized)
        only_named = "" if self.copied else "; no value was copied"
        return f"{', '.join(counts)}; {self.coverage:.2%} of the network's elements{only_named}"

    def listing(self) -> str:
        """The counts, then the name of every tensor, part by part."""
        names = [f"{part}: {name}" for part in PARTS for name in getattr(self, part)]
        return "\n".join([str(self), *names])


class Resized(dict):
    """Tensors by name, as a layout returns them, with the names of those that it resized.

    Args:
        weights: the tensors.
        resized: names of the tensors whose values were interpolated to another shape.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], resized: Sequence[str]) -> None:
        super().__init__(weights)
        self.resized = tuple(resized)


@knob_types
def load_pretrained(
    path: str | Path | None,
    network: nn.Module,
    coverage: float = 0.5,
    keep: Sequence[str] | None = None,
    layout: Callable | Sequence[Callable] = (),
    copy: bool = True,
) -> Transfer:
    """Copy into a network every tensor of a file that the network has by the same name and shape.

    Args:
        path: weights to start from, as ``models/pretrained.pt``: tensors under the network's own names, bare or wrapped
            in ``state_dict``, ``model`` or ``net``; None starts from scratch.
        network: the network that gets the tensors; the network is changed in place, or not at all.
        coverage: least share of the network's elements that the file must give, 0 to 1; from scratch the share is not
            asked for.
        keep: prefixes of the names of the tensors that are carried, such as ["conv_0.", "down_"] for an encoder alone;
            None: all tensors that fit are carried.
        layout: brings weights of another layout to the network's names, given the weights and the network's own
            tensors, as `residual_encoder` does; several layouts are applied in order.
        copy: whether values are copied; False: the control of a comparison, whose network keeps its own values while
            its report, and so its learning rates, are those of the file.

    Returns:
        The report. Its names are logged too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no state dict, no tensor of a name that is kept, or a smaller share than `coverage`.
    """
    if not 0 <= coverage <= 1:
        raise ValueError(f"load_pretrained: coverage must be 0 to 1, got {coverage}")
    tensors = network.state_dict()
    weights = {} if path is None else read_weights(path)
    layouts, resized = [layout] if callable(layout) else layout, set()
    for rename in layouts if path is not None else ():
        try:
            weights = rename(weights, tensors)
        except ValueError as error:
            raise ValueError(f"{path} is not loaded: {error}") from error
        resized |= set(getattr(weights, "resized", ()))
    kept = {name: value for name, value in weights.items() if keep is None or name.startswith(tuple(keep))}
    if weights and not kept:
        raise ValueError(
            f"{path} is not loaded: no tensor's name begins with one of {list(keep)} (carry); the first names are "
            f"{', '.join(list(weights)[:3])}"
        )
    weights = kept
    if bad := [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]:
        raise ValueError(f"{path} is not loaded: its tensor {bad[0]!r} ({len(bad)} in all) is not finite")
    report, fitting = compare(weights, tensors)
    report = replace(report, copied=copy, resized=tuple(name for name in report.carried if name in resized))
    if path is not None and (report.coverage < coverage or not fitting):
        raise ValueError(
            f"{path} (first tensor {next(iter(weights), None)!r}, the network's {next(iter(tensors))!r}): {report}, "
            f"at least {coverage:.0%} asked for (coverage)"
        )
    if copy:
        network.load_state_dict(fitting, strict=False)
    logger.info("weights %s: %s", path, report) if path is not None else logger.info("from scratch: no weights loaded")
    for part in PARTS if path is not None else ():
        if getattr(report, part):
            logger.info("%s: %s", part, ", ".join(getattr(report, part)))
    return report


def compare(
    weights: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> tuple[Transfer, dict[str, torch.Tensor]]:
    """The report on weights and a network's own tensors, and those of the weights that fit."""
    fitting = {name: value for name, value in weights.items() if name in tensors and tensors[name].shape == value.shape}
    elements = sum(value.numel() for value in tensors.values())
    report = Transfer(
        carried=tuple(fitting),
        reshaped=tuple(name for name in tensors if name in weights and name not in fitting),
        missing=tuple(name for name in tensors if name not in weights),
        unused=tuple(name for name in weights if name not in tensors),
        coverage=sum(tensors[name].numel() for name in fitting) / elements,
    )
    return report, fitting


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the state dict in a file, onto the CPU and with ``weights_only=True``.

    Many projects wrap the tensors: a file whose ``state_dict``, ``model`` or ``net`` holds tensors by name is opened,
    and the log says so. Settings of a run (`argparse.Namespace`) may stand beside the tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds code, or is not a dict of tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: give what a run of pretrain.json has written, or none to start from scratch"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError, TypeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{path} cannot be read as weights (damaged, or not a file of tensors): {reason}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is not a bare state dict, but a {type(content).__name__}")
    for wrapper in WRAPPERS:
        if _holds_tensors(content.get(wrapper)):
            logger.info("%s: the tensors are those under %r; beside them the file holds %s", path, wrapper, [
                name for name in content if name != wrapper
            ])
            return dict(content[wrapper])
    if not _holds_tensors(content):
        foreign = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
        problem = f"{foreign[:3]} are no tensors" if foreign else "it is empty"
        raise ValueError(f"{path} is not a bare state dict: {problem}; names and tensors are expected")
    return dict(content)


def _holds_tensors(content: object) -> bool:
    return (
        isinstance(content, Mapping) and bool(content) and all(isinstance(x, torch.Tensor) for x in content.values())
    )

"""The contract of a method: what the engine, the bundles and the tests rely on."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Watched(NamedTuple):
    """What the collapse monitor follows of a network's output.

    Attributes:
        keys: of embeddings (N, C) and maps (N, C, *S), for rank and spread.
        pairs: pairs of keys of two views' embeddings, for alignment and uniformity.
    """

    keys: tuple[str, ...] = ("features",)
    pairs: tuple[tuple[str, str], ...] = ()


class PretrainingNetwork(nn.Module, ABC):
    """A backbone with what pre-training adds to it.

    * ``views, target = views(batch)`` is made outside, on the device: `views` is what the network reads (``view_1``
      (B, C, *S), …, ``subject``, ``position``), `target` what the loss reads (``warp_1`` (B, D, D + 1), …).
    * ``output = network(views)`` is a dict of named embeddings and maps. It computes no loss and changes nothing but
      the running statistics of norm layers; whatever else changes outside of the optimiser changes in `update`.
    * ``terms = loss(output, target)`` is a dict of named, weighted scalars, which the engine sums.

    Attributes:
        backbone: the very module that is fine-tuned later, a MONAI network.
    """

    backbone: nn.Module

    @abstractmethod
    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named embeddings and maps of the views."""

    @abstractmethod
    def trained_parts(self) -> tuple[str, ...]:
        """Names of the backbone's tensors that pre-training moves (integer index buffers do not count)."""

    def shared_parts(self) -> tuple[str, ...]:
        """Names of the tensors that `models/pretrained.pt` holds: `trained_parts` and what they cannot work without."""
        return self.trained_parts()

    def watched(self) -> Watched:
        """What the collapse monitor follows: by default the embeddings under ``features``."""
        return Watched()

    def update(self, outputs: Sequence[dict[str, Tensor]]) -> None:
        """What changes after an optimiser step: a momentum copy, a queue. By default nothing.

        Args:
            outputs: of the micro-batches of this step, detached.
        """

    def freeze_untrained(self) -> None:
        """Take the gradient from the backbone's parameters outside `trained_parts`, as several processes require."""
        trained = set(self.trained_parts())
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in trained)


def names_beginning_with(backbone: nn.Module, prefixes: Sequence[str]) -> tuple[str, ...]:
    """Names of the backbone's tensors that begin with one of `prefixes`, in the order of its state dict."""
    return tuple(name for name in backbone.state_dict() if name.startswith(tuple(prefixes)))

"""The interface of a method, on which the engine, the bundles and the tests rely."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Watched(NamedTuple):
    """The parts of a network's output that the collapse monitor follows.

    Attributes:
        keys: keys of embeddings (N, C) and maps (N, C, *S), of which the monitor measures rank and spread.
        pairs: pairs of keys of two views' embeddings, of which the monitor measures alignment and uniformity.
    """

    keys: tuple[str, ...] = ("features",)
    pairs: tuple[tuple[str, str], ...] = ()


class PretrainingNetwork(nn.Module, ABC):
    """A backbone together with the parts that only pre-training needs.

    * ``views, target = views(batch)`` is computed outside of the network, on the device. `views` is what the network
      reads (``view_1`` (B, C, *S), …, ``subject``, ``position``); `target` is what the loss reads (``warp_1``
      (B, D, D + 1), …).
    * ``output = network(views)`` is a dictionary of named embeddings and maps. This step computes no loss and changes
      nothing but the running statistics of normalisation layers. Other state that the optimiser does not change, such
      as a queue, changes in `update`.
    * ``terms = loss(output, target)`` is a dictionary of named, weighted scalars, which the engine sums.

    Attributes:
        backbone: the MONAI network that is pre-trained; the same module is fine-tuned later.
    """

    backbone: nn.Module

    @abstractmethod
    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the named embeddings and maps of the views."""

    @abstractmethod
    def trained_parts(self) -> tuple[str, ...]:
        """Return the names of the backbone's tensors that pre-training changes, without integer index buffers."""

    def shared_parts(self) -> tuple[str, ...]:
        """Return the names of the backbone's tensors that ``models/pretrained.pt`` holds.

        The names are those of `trained_parts` and of any other tensors that the trained parts need; by default, there
        are no other tensors.
        """
        return self.trained_parts()

    def watched(self) -> Watched:
        """Return what the collapse monitor follows; by default the embeddings ``features``."""
        return Watched()

    def update(self, outputs: Sequence[dict[str, Tensor]]) -> None:
        """Update state after an optimiser step, such as a momentum copy or a queue; by default, nothing is updated.

        Args:
            outputs: the network's outputs for the micro-batches of this step, detached.
        """

    def freeze_untrained(self) -> None:
        """Switch off the gradient of the backbone's parameters outside `trained_parts`.

        Training on several processes requires that parameters which do not enter the loss require no gradient.
        """
        trained = set(self.trained_parts())
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in trained)


def names_beginning_with(backbone: nn.Module, prefixes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the backbone's tensors that begin with one of `prefixes`, in the order of its state dict."""
    return tuple(name for name in backbone.state_dict() if name.startswith(tuple(prefixes)))

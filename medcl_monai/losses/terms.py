"""The base class of losses with named, weighted terms, and the sum of several losses."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn


class TermLoss(nn.Module, ABC):
    """A loss that returns named, weighted scalar terms; the engine sums the terms.

    Attributes:
        contrasts: names of the terms that contrast embeddings; the collapse monitor compares each of these terms with
            the term's value for equal embeddings.
        watched: keys of the embeddings or maps in the network's output that the collapse monitor follows, for a loss of
            a network that does not say this itself, such as a plain segmenter.
    """

    contrasts: tuple[str, ...] = ()
    watched: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, output: Mapping[str, Tensor], target: object) -> dict[str, Tensor]:
        """Return the named, weighted terms for a network's output."""


class SumOfLosses(TermLoss):
    """Combines several losses of the same output into one loss, which returns the terms of all these losses.

    Args:
        losses: the losses by name; the names become the names of the submodules and do not appear in the names of the
            terms.

    Raises:
        ValueError: there are no losses; in `forward`: two losses return a term of the same name.
    """

    def __init__(self, losses: Mapping[str, TermLoss]) -> None:
        super().__init__()
        if not losses:
            raise ValueError("SumOfLosses: at least one loss is expected")
        self.losses = nn.ModuleDict(dict(losses))
        self.contrasts = tuple(name for loss in losses.values() for name in loss.contrasts)
        self.watched = tuple(dict.fromkeys(name for loss in losses.values() for name in loss.watched))

    def forward(self, output: Mapping[str, Tensor], target: object) -> dict[str, Tensor]:
        """Return the terms of all losses."""
        terms: dict[str, Tensor] = {}
        for place, loss in self.losses.items():
            of_loss = loss(output, target)
            if twice := sorted(set(terms) & set(of_loss)):
                raise ValueError(f"SumOfLosses: {place!r} returns the term {twice[0]!r}, which another loss returned")
            terms |= of_loss
        return terms

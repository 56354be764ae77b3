"""What every loss of a method keeps: named, weighted terms; and several losses as one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn


class TermLoss(nn.Module, ABC):
    """A loss that returns named, weighted scalar terms, which the engine sums.

    Attributes:
        contrasts: names of the terms that contrast embeddings, so that equal embeddings are their collapse; the
            collapse monitor follows these.
    """

    contrasts: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, output: Mapping[str, Tensor], target: object) -> dict[str, Tensor]:
        """Named, weighted terms of a network's output."""


class SumOfLosses(TermLoss):
    """Several losses of the same output as one: all of their terms, under their own names.

    Args:
        losses: name to loss; the names are those of the module's parts and do not appear in the terms.

    Raises:
        ValueError: no losses; in `forward`: two losses return a term of the same name.
    """

    def __init__(self, losses: Mapping[str, TermLoss]) -> None:
        super().__init__()
        if not losses:
            raise ValueError("SumOfLosses: at least one loss is expected")
        self.losses = nn.ModuleDict(dict(losses))
        self.contrasts = tuple(name for loss in losses.values() for name in loss.contrasts)

    def forward(self, output: Mapping[str, Tensor], target: object) -> dict[str, Tensor]:
        """The terms of all losses."""
        terms: dict[str, Tensor] = {}
        for place, loss in self.losses.items():
            of_loss = loss(output, target)
            if twice := sorted(set(terms) & set(of_loss)):
                raise ValueError(f"SumOfLosses: {place!r} returns the term {twice[0]!r}, which another loss returned")
            terms |= of_loss
        return terms

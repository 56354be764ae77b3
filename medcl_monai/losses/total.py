"""The sum of a loss's terms, for training loops that take one number."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn


class TotalLoss(nn.Module):
    """Sums the named terms of a loss, for MONAI's `SupervisedTrainer`; this package's `Trainer` sums terms itself.

    Args:
        loss: a loss of (output, target) that returns a dict of named scalar terms.

    Attributes:
        terms: the terms of the last call, detached, for a handler that logs them.

    Example:
        >>> import torch
        >>> loss = TotalLoss(lambda output, target: {"a": output["pred"].mean(), "b": 2 * target.mean()})
        >>> loss({"pred": torch.ones(2)}, torch.ones(2)), loss.terms
        (tensor(3.), {'a': tensor(1.), 'b': tensor(2.)})
    """

    def __init__(self, loss: Callable) -> None:
        super().__init__()
        self.loss = loss
        self.terms: dict[str, Tensor] = {}

    def forward(self, output: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """Return the sum of the terms."""
        terms = self.loss(output, target)
        self.terms = {name: value.detach() for name, value in terms.items()}
        return sum(terms.values())

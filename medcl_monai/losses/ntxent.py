"""NT-Xent, the normalised temperature-scaled cross entropy of SimCLR."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from medcl_monai.knobs import knob_types
from medcl_monai.losses.cosine import check_temperature
from medcl_monai.losses.positional import local_pair_contrast
from medcl_monai.losses.terms import TermLoss


class NTXentLoss(TermLoss):
    r"""Trains each view to pick its partner out of all other views of the batch.

    Chen et al. 2020, eq. 1, https://arxiv.org/abs/2002.05709.

    .. math:: \ell_i = -\log \frac{\exp(z_i \cdot z_{j} / \tau)}{\sum_{k \neq i} \exp(z_i \cdot z_k / \tau)}

    Args:
        temperature: the cosine similarities are divided by this number, the paper's τ; no unit, above 0.
        weight: weight of this term in the sum that is minimised; no unit.

    Raises:
        ValueError: `temperature` is not above 0.

    Example:
        >>> output = {"view_1": torch.eye(4), "view_2": torch.eye(4)}
        >>> NTXentLoss(temperature=0.1)(output)["contrast"] < 0.001
        tensor(True)
    """

    contrasts = ("contrast",)

    @knob_types
    def __init__(self, temperature: float = 0.1, weight: float = 1.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature, self.weight = temperature, weight

    def forward(self, output: Mapping[str, Float[Tensor, "batch dim"]], target: object = None) -> dict[str, Tensor]:
        """Return the weighted term ``contrast``; the engine's second argument, `target`, is not used."""
        return {"contrast": self.weight * ntxent(output["view_1"], output["view_2"], self.temperature)}


def ntxent(a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"], temperature: float) -> Float[Tensor, ""]:
    """Compute NT-Xent of two batches of projections; row i of `a` and row i of `b` are views of one sample.

    NT-Xent is the positional contrast of samples with distinct positions: the only positive of a row is its partner.
    """
    return local_pair_contrast(a, b, torch.arange(len(a), device=a.device), temperature, threshold=0.5)

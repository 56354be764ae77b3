"""The normalised temperature-scaled cross entropy of SimCLR."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from medcl_monai.knobs import knob_types
from medcl_monai.losses.cosine import check_temperature
from medcl_monai.losses.positional import local_pair_contrast
from medcl_monai.losses.terms import TermLoss


class NTXentLoss(TermLoss):
    r"""Each view must pick its partner out of all the other views of the batch.

    Chen et al. 2020, eq. 1, https://arxiv.org/abs/2002.05709.

    .. math:: \ell_i = -\log \frac{\exp(z_i \cdot z_{j} / \tau)}{\sum_{k \neq i} \exp(z_i \cdot z_k / \tau)}

    Args:
        temperature: divides the cosine similarities; the paper's τ. No unit, above 0.
        weight: of this term in the sum that is minimised. No unit.

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
        """The one weighted term; `target` is the engine's second argument, unused here."""
        return {"contrast": self.weight * ntxent(output["view_1"], output["view_2"], self.temperature)}


def ntxent(a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"], temperature: float) -> Float[Tensor, ""]:
    """NT-Xent of two batches of projections; row i of `a` and row i of `b` are views of one sample.

    It is the positional contrast of distinct positions: the only positive of a row is its partner.
    """
    return local_pair_contrast(a, b, torch.arange(len(a), device=a.device), temperature, threshold=0.5)

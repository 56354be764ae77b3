"""A penalty on correlations between the channels of embeddings."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from medcl_monai.distributed import gather
from medcl_monai.knobs import knob_types
from medcl_monai.losses.terms import TermLoss
from medcl_monai.precision import full_precision


class CovarianceLoss(TermLoss):
    """Penalises correlations between the channels of the embeddings, by `covariance_penalty`.

    Args:
        key: key of the embeddings in the network's output.
        weight: weight of this term in the sum that is minimised; no unit, 0 or more. 0: the term is left out.

    Raises:
        ValueError: `weight` is negative.
    """

    @knob_types
    def __init__(self, key: str = "features", weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"CovarianceLoss: weight must be 0 or more, got {weight}")
        self.key, self.weight = key, weight

    def forward(self, output: Mapping[str, Tensor], target: object = None) -> dict[str, Tensor]:
        """Return the weighted term ``covariance``, or no term if the weight is 0."""
        return {"covariance": self.weight * covariance_penalty(output[self.key])} if self.weight > 0 else {}


@full_precision
def covariance_penalty(embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    r"""Compute :math:`\sum_{i \neq j} C_{ij}^2 / d`, where C is the covariance of the rows of all processes.

    The penalty is the covariance term of VICReg (Bardes et al. 2022, https://arxiv.org/abs/2105.04906).

    Args:
        embeddings: embeddings (N, d), at least 2 rows.

    Raises:
        ValueError: all processes together have fewer than 2 rows.

    Example:
        >>> import torch
        >>> float(covariance_penalty(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])))
        4.0
    """
    rows = gather(embeddings)
    if len(rows) < 2:
        raise ValueError(f"covariance_penalty: {len(rows)} rows have no covariance, at least 2 are needed")
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / (len(rows) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / rows.shape[1]

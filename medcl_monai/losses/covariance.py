"""A penalty on correlated channels."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from medcl_monai.distributed import gather
from medcl_monai.knobs import knob_types
from medcl_monai.losses.terms import TermLoss
from medcl_monai.precision import full_precision


class CovarianceLoss(TermLoss):
    """Channels of the embeddings should not be correlated; see `covariance_penalty`.

    Args:
        key: of the embeddings in the network's output.
        weight: of this term in the sum that is minimised. No unit; 0 leaves the term out.

    Raises:
        ValueError: a negative weight.
    """

    @knob_types
    def __init__(self, key: str = "features", weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"CovarianceLoss: weight must be 0 or more, got {weight}")
        self.key, self.weight = key, weight

    def forward(self, output: Mapping[str, Tensor], target: object = None) -> dict[str, Tensor]:
        """The one weighted term, ``covariance``."""
        return {"covariance": self.weight * covariance_penalty(output[self.key])} if self.weight > 0 else {}


@full_precision
def covariance_penalty(embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    r"""Mean square of the off-diagonal covariances, :math:`\sum_{i \neq j} C_{ij}^2 / d`, over all processes' rows.

    The covariance term of VICReg (Bardes et al. 2022, https://arxiv.org/abs/2105.04906).

    Args:
        embeddings: (N, d), at least 2 rows.

    Raises:
        ValueError: fewer than 2 rows.

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

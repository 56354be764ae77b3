"""A penalty on correlated channels."""

import torch
from jaxtyping import Float
from torch import Tensor

from medcl_monai.distributed import gather


def covariance_penalty(embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    r"""Mean square of the off-diagonal covariances, :math:`\sum_{i \neq j} C_{ij}^2 / d`, over all processes' rows.

    The covariance term of VICReg (Bardes et al. 2022, https://arxiv.org/abs/2105.04906).

    Args:
        embeddings: (N, d), at least 2 rows.

    Raises:
        ValueError: fewer than 2 rows.

    Example:
        >>> float(covariance_penalty(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])))
        4.0
    """
    rows = gather(embeddings)
    if len(rows) < 2:
        raise ValueError(f"covariance_penalty: {len(rows)} rows have no covariance, at least 2 are needed")
    with torch.autocast(rows.device.type, enabled=False):  # autocast would take the products in half precision
        centred = rows.to(torch.promote_types(rows.dtype, torch.float32))
        centred = centred - centred.mean(0)
        covariance = centred.T @ centred / (len(rows) - 1)
        return (covariance.square().sum() - covariance.diagonal().square().sum()) / rows.shape[1]

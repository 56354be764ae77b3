"""Figures that describe embeddings: how many directions the embeddings use, and how far the embeddings spread.

An argument `features` holds embeddings (N, C), or feature maps (N, C, *S), in which each position of each sample counts
as one embedding. The figures of such features are computed at least in fp32.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def spectrum(features: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, " values"]:
    """Return the singular values of the embeddings, largest first.

    The embeddings are not centred. The number of singular values is the smaller of the number of embeddings and C.
    """
    rows = _rows(features)
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()


def effective_rank(features: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, ""]:
    """Return the number of directions that the embeddings use, 1 to the smaller of the number of embeddings and C.

    The effective rank is exp of the entropy of the singular values, which are normalised to the sum 1: RankMe, Garrido
    et al. 2022, eq. 1, https://arxiv.org/abs/2210.02885.

    Example:
        >>> round(float(effective_rank(torch.eye(8))), 4)
        8.0
    """
    return entropy_rank(spectrum(features))


def entropy_rank(values: Float[Tensor, " values"]) -> Float[Tensor, ""]:
    """Return exp of the entropy of singular values that are normalised to the sum 1.

    The result is the `effective_rank` of embeddings whose spectrum is known already.
    """
    share = values / values.sum().clamp(min=1e-30)
    return torch.exp(-torch.special.xlogy(share, share).sum())


def numerical_rank(values: Float[Tensor, " values"], tolerance: float = 1e-3) -> Int[Tensor, ""]:
    """Return the number of directions that are not dead: singular values above `tolerance` times the largest value.

    If most of the information in the embeddings lies in few directions, `effective_rank` is low although no direction
    is lost; the numerical rank is not low then. Errors from rounding the embeddings to bfloat16 stay below the
    tolerance. Errors of singular values computed in fp32 may exceed the tolerance, so compute the singular values in
    fp64.

    Args:
        values: singular values, as `spectrum` returns them.
        tolerance: share of the largest singular value that a direction must exceed, above 0.

    Example:
        >>> int(numerical_rank(torch.tensor([1.0, 0.1, 0.01, 1e-5])))
        3
    """
    return (values > tolerance * values.max()).sum()


def participation_ratio(features: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, ""]:
    """Return (Σλ)² / Σλ² of the eigenvalues λ of the covariance: a number of directions, 1 to C.

    Directions of large variance have more weight in this number. The ratio of constant embeddings is 0.
    """
    rows = _rows(features)
    rows = rows - rows.mean(0)
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return gram.diagonal().sum() ** 2 / gram.square().sum().clamp(min=1e-30)


def feature_spread(features: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, ""]:
    """Return how far the unit vectors of the embeddings spread: 0 for one point, 1 for the whole sphere.

    The spread is the standard deviation of the unit vectors, averaged over channels and multiplied by √C.
    """
    unit = F.normalize(_rows(features), dim=1)
    return unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5


def alignment(first: Float[Tensor, "batch dim *sites"], second: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, ""]:
    """Return the mean squared distance between the unit vectors of two views: 0 if the views agree, at most 4.

    Wang and Isola 2020, https://arxiv.org/abs/2005.10242.
    """
    return (F.normalize(_rows(first), dim=1) - F.normalize(_rows(second), dim=1)).square().sum(1).mean()


def uniformity(features: Float[Tensor, "batch dim *sites"], samples: int = 2048) -> Float[Tensor, ""]:
    """Return the log of the mean of exp(-2 d²) over all pairs of unit vectors, where d is the distance of a pair.

    The uniformity is 0 if all vectors are one point, and about -4 if the vectors are spread uniformly over the sphere.
    Wang and Isola 2020, https://arxiv.org/abs/2005.10242. Of more than `samples` vectors, `samples` evenly spaced
    vectors are used.
    """
    rows = _rows(features)
    rows = rows[torch.linspace(0, len(rows) - 1, min(samples, len(rows)), device=rows.device).long()]
    return torch.pdist(F.normalize(rows, dim=1)).square().mul(-2).exp().mean().log()


def _rows(features: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, "samples dim"]:
    rows = features.detach()
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows if rows.ndim == 2 else rows.flatten(2).transpose(1, 2).flatten(0, 1)


def within_sample_share(feature_map: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, ""]:
    """Return the share of a map's variance that lies within samples, 0 to 1.

    The share is 0 if each sample has one vector at all of its positions. A map can keep its rank and its spread over
    samples while all positions of a slice look alike. Such a map is of no use for dense contrast and segmentation.

    Example:
        >>> round(float(within_sample_share(torch.randn(4, 8, 1, 1).expand(-1, -1, 5, 5))), 6)
        0.0
    """
    values = feature_map.to(torch.promote_types(feature_map.dtype, torch.float32)).flatten(2)
    within = (values - values.mean(2, keepdim=True)).square().mean()
    total = (values - values.mean((0, 2), keepdim=True)).square().mean()
    return within / total.clamp(min=1e-30)

"""Figures of embeddings: how many directions they use, and how far they spread.

All take embeddings (N, C), or maps (N, C, *S) whose sites are then the samples, and compute in fp32 at least.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def spectrum(features: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, " values"]:
    """Singular values of the embeddings, not centred, largest first; min(samples, C) of them."""
    rows = _rows(features)
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()


def effective_rank(features: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, ""]:
    """How many directions the embeddings use: exp of the entropy of the normalised singular values; 1 to min(N, C).

    RankMe, Garrido et al. 2022, eq. 1, https://arxiv.org/abs/2210.02885.

    Example:
        >>> round(float(effective_rank(torch.eye(8))), 4)
        8.0
    """
    return entropy_rank(spectrum(features))


def entropy_rank(values: Float[Tensor, " values"]) -> Float[Tensor, ""]:
    """Exp of the entropy of singular values that are normalised to the sum 1: `effective_rank` of a known spectrum."""
    share = values / values.sum().clamp(min=1e-30)
    return torch.exp(-torch.special.xlogy(share, share).sum())


def numerical_rank(values: Float[Tensor, " values"], tolerance: float = 1e-3) -> Int[Tensor, ""]:
    """How many singular values are above `tolerance` times the largest: directions that are not dead; 0 to all of them.

    Where most of what embeddings say lies in few directions, `effective_rank` is low although none is lost; this one
    is not. Rounding to bfloat16 stays below the tolerance; values from fp32 may not: take fp64.

    Args:
        values: singular values (see `spectrum`).
        tolerance: share of the largest, above 0.

    Example:
        >>> int(numerical_rank(torch.tensor([1.0, 0.1, 0.01, 1e-5])))
        3
    """
    return (values > tolerance * values.max()).sum()


def participation_ratio(features: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, ""]:
    """(Σλ)² / Σλ² of the eigenvalues λ of the covariance: 1 to C, weighted to the large directions; 0 if constant."""
    rows = _rows(features)
    rows = rows - rows.mean(0)
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return gram.diagonal().sum() ** 2 / gram.square().sum().clamp(min=1e-30)


def feature_spread(features: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, ""]:
    """Mean over channels of the standard deviation of unit vectors, times √C: 1 all over the sphere, 0 one point."""
    unit = F.normalize(_rows(features), dim=1)
    return unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5


def alignment(first: Float[Tensor, "batch dim *sites"], second: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, ""]:
    """Mean squared distance of the unit vectors of two views, 0 (they agree) to 4.

    Wang and Isola 2020, https://arxiv.org/abs/2005.10242.
    """
    return (F.normalize(_rows(first), dim=1) - F.normalize(_rows(second), dim=1)).square().sum(1).mean()


def uniformity(features: Float[Tensor, "batch dim *sites"], samples: int = 2048) -> Float[Tensor, ""]:
    """Log of the mean of exp(-2 d²) over pairs of unit vectors: 0 (one point) down to about -4 (uniform).

    Wang and Isola 2020, https://arxiv.org/abs/2005.10242. Of more than `samples` vectors, evenly spaced ones are taken.
    """
    rows = _rows(features)
    rows = rows[torch.linspace(0, len(rows) - 1, min(samples, len(rows)), device=rows.device).long()]
    return torch.pdist(F.normalize(rows, dim=1)).square().mul(-2).exp().mean().log()


def _rows(features: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, "samples dim"]:
    rows = features.detach()
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows if rows.ndim == 2 else rows.flatten(2).transpose(1, 2).flatten(0, 1)


def within_sample_share(feature_map: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, ""]:
    """Share of a map's variance that lies within its samples: 0 where each sample is one vector at all of its places.

    A map can keep its rank and spread over samples while every place of a slice looks alike, which dense contrast and
    segmentation cannot use.

    Example:
        >>> round(float(within_sample_share(torch.randn(4, 8, 1, 1).expand(-1, -1, 5, 5))), 6)
        0.0
    """
    values = feature_map.to(torch.promote_types(feature_map.dtype, torch.float32)).flatten(2)
    within = (values - values.mean(2, keepdim=True)).square().mean()
    total = (values - values.mean((0, 2), keepdim=True)).square().mean()
    return within / total.clamp(min=1e-30)

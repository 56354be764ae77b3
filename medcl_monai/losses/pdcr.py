"""Patch-dragsaw contrast: cells of a hidden layer attract and repel each other by the labels of their surroundings."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from medcl_monai.distributed import total, world_size
from medcl_monai.losses.cosine import check_temperature
from medcl_monai.precision import full_precision

FAR = -1e9  # logit of a cell that does not count
LEAST_DIVERGENCE = 1e-6  # cells that differ by less are alike: rounding of shares stays below


@full_precision
def cell_embeddings(
    feature_map: Float[Tensor, "batch channels *size"], index: Integer[Tensor, "batch cells"]
) -> Float[Tensor, "batch cells channels"]:
    """Return the channel vectors of cells of a map, in fp32 at least."""
    places = index[:, None].expand(-1, feature_map.shape[1], -1)
    return feature_map.flatten(2).gather(2, places).mT


@full_precision
def affinity(
    shares_1: Float[Tensor, "*batch cells_1 classes"], shares_2: Float[Tensor, "*batch cells_2 classes"]
) -> Float[Tensor, "*batch cells_1 cells_2"]:
    r"""Compute how much the labels around two cells agree, for all pairs of cells: 1 for equal shares, 0 for disjoint.

    .. math:: A_{ij} = 1 - \tfrac{1}{2} \sum_c |\varphi_{i,c} - \varphi_{j,c}|

    This is 1 minus the total variation between the class shares φ of the two boxes, background included. For two
    classes A is 1 − |φ_i − φ_j|, the form in the authors' code.

    Args:
        shares_1: share of each class in the box of each cell, 0 to 1; the shares of a cell sum to 1.
        shares_2: the same for the cells of the second layer.

    Example:
        >>> pure, mixed = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.25, 0.75]])
        >>> affinity(pure, mixed)
        tensor([[0.2500]])
    """
    return 1 - torch.cdist(shares_1, shares_2, p=1) / 2


def pdcr(
    z_1: Float[Tensor, "batch cells_1 dim"],
    z_2: Float[Tensor, "batch cells_2 dim"],
    affinity: Float[Tensor, "batch *sizes cells_1 cells_2"],
    temperature: float = 0.5,
    valid_1: Bool[Tensor, "batch *sizes cells_1"] | None = None,
    valid_2: Bool[Tensor, "batch *sizes cells_2"] | None = None,
) -> Float[Tensor, ""]:
    r"""Pull the embeddings of two cells together by their affinity, and push them apart by their divergence.

    Li et al. 2022, https://arxiv.org/abs/2201.08779, in the orientation of the authors' 3D code:

    .. math::
        s_{ij} = (\cos(z_i, z_j) - 1) / \tau \qquad D = 1 - A \qquad
        \ell_{ij} = \log \sum_k e^{D_{ik} s_{ik}} - A_{ij} s_{ij}

    The loss is the mean of ℓ over the valid pairs of each image, then over the images, then over the box sizes. The sum
    runs over all valid cells k, cell i included. An image whose valid cells are all alike is left out, because nothing
    but attraction would remain. Differs from the authors' code: the 2D code exchanges A and D, which draws all
    embeddings together. If all embeddings are equal, the loss is log N. The loss falls to log N too when small
    structures are drawn into the background; `balanced_pdcr` is the form that does not.

    Args:
        z_1: embeddings of the cells of an image in one layer, of any length.
        z_2: embeddings of the cells in a second layer; for pairs within a layer, `z_1` again.
        affinity: A, 0 to 1, of each pair; with several box sizes, (B, R, N, M).
        temperature: τ, divides the cosine similarities; no unit, above 0.
        valid_1: whether the box of a cell holds a labelled voxel; None: all boxes do.
        valid_2: the same for the second layer.

    Raises:
        ValueError: `temperature` is not above 0.
    """
    s, a, first, second = _pairs(z_1, z_2, affinity, temperature, valid_1, valid_2)
    d, pairs = 1 - a, first[..., :, None] & second[..., None, :]
    push = (d * s).masked_fill(~second[..., None, :], FAR).logsumexp(-1)
    anchors, partners = first.sum(-1), second.sum(-1)
    pull = (a * s * pairs).sum((-2, -1)) / (anchors * partners).clamp(min=1)
    per_image = (push * first).sum(-1) / anchors.clamp(min=1) - pull
    kept = (d * pairs).amax((-2, -1)) > LEAST_DIVERGENCE
    return _mean_of_sizes(per_image, kept)


def balanced_pdcr(
    z_1: Float[Tensor, "batch cells_1 dim"],
    z_2: Float[Tensor, "batch cells_2 dim"],
    affinity: Float[Tensor, "batch *sizes cells_1 cells_2"],
    temperature: float = 0.5,
    valid_1: Bool[Tensor, "batch *sizes cells_1"] | None = None,
    valid_2: Bool[Tensor, "batch *sizes cells_2"] | None = None,
) -> Float[Tensor, ""]:
    r"""Pull and push as `pdcr` does, each with weight 1 per cell, however rare the classes of the cell are.

    The form is ours. With the letters of `pdcr`:

    .. math::
        \ell_i = -\frac{\sum_j A_{ij} s_{ij}}{\sum_j A_{ij}} + \log \frac{\sum_k D_{ik} e^{s_{ik}}}{\sum_k D_{ik}}

    The loss is the mean of ℓ over the cells of all images that have a cell unlike themselves, then over the box sizes:
    0 if all embeddings are equal, −1/τ if like cells are equal and unlike cells orthogonal, −2/τ if unlike cells are
    opposite. The arguments and errors are those of `pdcr`.
    """
    s, a, first, second = _pairs(z_1, z_2, affinity, temperature, valid_1, valid_2)
    a, d = a * second[..., None, :], (1 - a) * second[..., None, :]
    alike, unlike = a.sum(-1), d.sum(-1)
    kept = first & (unlike > LEAST_DIVERGENCE)
    pull = (a * s).sum(-1) / alike.clamp(min=LEAST_DIVERGENCE)
    d = torch.where(kept[..., None], d, 1.0)  # log 0 for a whole row would have no gradient
    push = (s + d.log()).logsumexp(-1) - d.sum(-1).log()
    return _mean_of_sizes((push - pull).movedim(1, -1).flatten(0, 1), kept.movedim(1, -1).flatten(0, 1))


@full_precision
def _similarity(z_1: Tensor, z_2: Tensor, temperature: float) -> Tensor:
    """Compute s of all pairs, (B, N, M), at most 0."""
    return (F.normalize(z_1, dim=-1) @ F.normalize(z_2, dim=-1).mT - 1) / temperature


def _pairs(
    z_1: Tensor, z_2: Tensor, affinity: Tensor, temperature: float, valid_1: Tensor | None, valid_2: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return s (B, 1, N, M), A (B, R, N, M) and the validity of the cells, (B, R, N) and (B, R, M)."""
    check_temperature(temperature)
    s = _similarity(z_1, z_2, temperature)[:, None]
    a = affinity.to(s)
    a = a[:, None] if a.ndim == 3 else a
    everywhere = torch.ones(a.shape, dtype=torch.bool, device=a.device)
    first = everywhere[..., 0] if valid_1 is None else valid_1.reshape(a.shape[:-1])
    second = everywhere[..., 0, :] if valid_2 is None else valid_2.reshape(*a.shape[:2], a.shape[3])
    return s, a, first, second


def _mean_of_sizes(values: Float[Tensor, "rows sizes"], kept: Bool[Tensor, "rows sizes"]) -> Float[Tensor, ""]:
    """Average over the kept rows of all processes for each box size, then over the sizes; nothing kept counts as 0."""
    count = total(kept.sum(0).to(values)).clamp(min=1)
    return ((values * kept).sum(0) * world_size() / count).mean()

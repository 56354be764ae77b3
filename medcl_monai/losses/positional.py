"""Positional contrast: slices at nearby positions attract each other, whichever subjects they belong to."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from medcl_monai.distributed import gather, rank, world_size
from medcl_monai.knobs import knob_types
from medcl_monai.losses.cosine import check_temperature
from medcl_monai.losses.terms import TermLoss
from medcl_monai.precision import full_precision

TIE = 1e-6  # for many depths, a difference of positions equals the threshold; rounding must not decide


class PositionalContrastiveLoss(TermLoss):
    """Pulls together the embeddings of slices at nearby positions, and pushes apart all other embeddings.

    Zeng D. et al. 2021 (PCL); Zeng S. et al. 2023, eq. 9 and 10, https://arxiv.org/abs/2309.11876, with the mean over
    the anchors in place of the sum. `positional_contrast` gives the formula.

    Args:
        first: key of the first view's embeddings in the network's output; the embeddings are (N, C), or a map
            (N, C, *S).
        second: key of the second view's embeddings in the network's output.
        temperature: the cosine similarities are divided by this number, the paper's τ; no unit, above 0.
        threshold: slices whose positions differ by less than this share of the slice axis are positives of each other,
            the paper's t; above 1e-6.
        weight: weight of this term in the sum that is minimised; no unit.
        gather: whether slices are contrasted with the slices of all processes; false: with the slices of the same
            process only.

    Raises:
        ValueError: `temperature` or `threshold` is out of range.
    """

    contrasts = ("contrast",)

    @knob_types
    def __init__(
        self,
        first: str = "view_1",
        second: str = "view_2",
        temperature: float = 0.1,
        threshold: float = 0.1,
        weight: float = 1.0,
        gather: bool = True,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_threshold(threshold)
        self.first, self.second, self.weight, self.gather = first, second, weight, gather
        self.temperature, self.threshold = temperature, threshold

    def forward(self, output: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted term ``contrast``; `target` holds ``position`` (N,)."""
        rows = dense_rows(output[self.first]), dense_rows(output[self.second])
        contrast = pair_contrast if self.gather else local_pair_contrast
        return {"contrast": self.weight * contrast(*rows, target["position"], self.temperature, self.threshold)}


@full_precision
def positional_contrast(
    embeddings: Float[Tensor, "*sites rows dim"],
    position: Shaped[Tensor, " rows"],
    temperature: float,
    threshold: float,
    anchors: slice | Tensor = slice(None),
) -> Float[Tensor, ""]:
    r"""Contrast rows by position, at each site separately, and return the mean over anchors and sites.

    .. math:: \ell_a = \log \sum_{b \neq a} e^{g_{ab}} - \frac{1}{|P(a)|} \sum_{b \in P(a)} g_{ab},\quad
        g_{ab} = \hat z_a \cdot \hat z_b / \tau,\quad P(a) = \{b \neq a : |p_a - p_b| < t - 10^{-6}\}

    The denominator contains the positives too. The computation runs outside of autocast, in fp32 at least.

    Args:
        embeddings: rows that are compared at each site: all views of all samples, one view after another. Every row
            needs a positive; the other view of the row's own sample is a positive.
        position: position of each row along the slice axis of its volume, in [0, 1]; positions are compared in fp64.
        temperature: the paper's τ, above 0.
        threshold: the paper's t, above 1e-6.
        anchors: rows whose losses ℓ are averaged; each anchor is compared with all rows.

    Raises:
        ValueError: `temperature` or `threshold` is out of range, or an anchor has no positive.

    Example:
        >>> views = torch.eye(2).repeat(2, 1)
        >>> round(float(positional_contrast(views, torch.tensor([0.1, 0.9, 0.1, 0.9]), 1.0, 0.1)), 4)
        0.5514
    """
    check_temperature(temperature)
    check_threshold(threshold)
    place = position.detach().to(torch.float64)
    near = (place[anchors, None] - place).abs() < threshold - TIE
    row = torch.arange(len(place), device=place.device)
    itself = row[anchors, None] == row
    near &= ~itself
    positives = near.sum(1, keepdim=True)
    if not bool(positives.all()):
        lonely = place[anchors][positives[:, 0] == 0][0]
        raise ValueError(f"no row is nearer than {threshold} to the row at position {float(lonely)}: its mean is empty")
    z = F.normalize(embeddings, dim=-1)
    logits = (z[..., anchors, :] / temperature) @ z.mT
    # the share is 0 on the diagonal, where the logits must still be finite, since 0 times -inf is NaN
    attraction = (logits * (near.to(logits.dtype) / positives)).sum(-1)
    return (logits.masked_fill_(itself, -torch.inf).logsumexp(-1) - attraction).mean()


def pair_contrast(
    first: Float[Tensor, "*sites batch dim"],
    second: Float[Tensor, "*sites batch dim"],
    position: Shaped[Tensor, " batch"],
    temperature: float,
    threshold: float,
) -> Float[Tensor, ""]:
    """Compute the positional contrast of two views against the rows of all processes; a process scores its own rows.

    The value is the sum over the process's own rows, divided by the mean number of rows per process. So the mean of the
    value over processes equals the value of one process that holds all rows. DistributedDataParallel takes the same
    mean of the gradients. Without a process group, the function is `local_pair_contrast`.
    """
    if world_size() == 1:
        return local_pair_contrast(first, second, position, temperature, threshold)
    counts = gather(torch.tensor([first.shape[-2]], device=first.device)).tolist()
    before, here, everyone = sum(counts[: rank()]), counts[rank()], sum(counts)
    everything = _join(_gather_rows(first), _gather_rows(second))
    anchors = torch.arange(before, before + here, device=first.device)
    anchors = torch.cat([anchors, anchors + everyone])
    places = gather(position.detach().to(torch.float64)).repeat(2)
    mean = positional_contrast(everything, places, temperature, threshold, anchors)
    return mean * (here * world_size() / everyone)


def local_pair_contrast(
    first: Float[Tensor, "*sites batch dim"],
    second: Float[Tensor, "*sites batch dim"],
    position: Shaped[Tensor, " batch"],
    temperature: float,
    threshold: float,
) -> Float[Tensor, ""]:
    """Compute the positional contrast of two views of the samples of this process alone."""
    return positional_contrast(_join(first, second), position.repeat(2), temperature, threshold)


def dense_rows(x: Float[Tensor, "batch dim *sites"]) -> Float[Tensor, "*flat batch dim"]:
    """Turn a map (N, C, *S) into rows at each site (S, N, C); embeddings (N, C) are returned as they are."""
    return x if x.ndim == 2 else x.flatten(2).permute(2, 0, 1)


def check_threshold(threshold: float) -> None:
    """Raise ValueError unless the threshold is large enough for a row to be near the other view of its own sample."""
    if not threshold > TIE:
        raise ValueError(f"threshold must be above {TIE:g} (a share of the slice axis), got {threshold}")


@full_precision
def _join(
    first: Float[Tensor, "*sites batch dim"], second: Float[Tensor, "*sites batch dim"]
) -> Float[Tensor, "*sites rows dim"]:
    return torch.cat([first, second], dim=-2)  # under autocast, `cat` refuses or changes some dtypes


def _gather_rows(x: Float[Tensor, "*sites batch dim"]) -> Float[Tensor, "*sites all dim"]:
    return gather(x.movedim(-2, 0).contiguous()).movedim(0, -2)

"""Slab-aware contrast: views of a slice attract each other, slices of other slabs of the axis repel."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medcl_monai.data.slabs import slab_of
from medcl_monai.distributed import first_row, gather, mean_over_processes
from medcl_monai.knobs import knob_types
from medcl_monai.losses.cosine import check_temperature
from medcl_monai.losses.infonce import LEAST
from medcl_monai.losses.terms import TermLoss
from medcl_monai.precision import full_precision


class SlabContrastiveLoss(TermLoss):
    """Pulls together the views of a slice, and pushes apart slices of different slabs, whichever subjects they are of.

    Chaitanya et al. 2020, section 3.1, https://arxiv.org/abs/2006.10511 (their GD-): each volume is cut into equal
    slabs along the slice axis. Slices of the same slab, of any subject, show the same anatomy, so they are never
    negatives. `slab_contrast` gives the formula. Differences from the authors' code: the slab follows from the slice's
    position and not from its index in the batch, and the loss is a mean over pairs of views. On several processes, the
    slices of all processes are negatives.

    Args:
        weight: weight of this term in the sum that is minimised; no unit, 0 or more. 0: the term is left out.
        temperature: the cosine similarities are divided by this number, τ; no unit, above 0.
        slabs: number of equal parts of the slice axis, at least 1; None or "none": all other slices are negatives, as
            in SimCLR.
        cross_subject: share of the loss for which slices of the same slab of other samples are positives (GD), 0 up to
            1.
        views: keys of the views' embeddings in the network's output.

    Raises:
        ValueError: a number is out of range, or there are fewer than 2 views.
    """

    contrasts = ("contrast",)

    @knob_types
    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.1,
        slabs: int | None = 4,
        cross_subject: float = 0.0,
        views: Sequence[str] = ("view_1", "view_2", "view_3"),
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if weight < 0 or not 0 <= cross_subject < 1 or (slabs is not None and slabs < 1) or len(views) < 2:
            raise ValueError(
                f"SlabContrastiveLoss: weight {weight} must be 0 or more, cross_subject {cross_subject} 0 up to 1, "
                f"slabs {slabs} at least 1 or none, and there must be 2 views or more, got {tuple(views)}"
            )
        self.weight, self.temperature, self.slabs, self.cross_subject = weight, temperature, slabs, cross_subject
        self.views = tuple(views)

    def forward(self, output: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted term ``contrast``; if the weight is 0, no term is returned.

        Args:
            output: the embeddings (B, C) of each view, of any length.
            target: ``position`` (B,), 0 to 1.
        """
        if self.weight == 0:
            return {}
        own = torch.stack([output[name] for name in self.views], 1)
        position = target["position"]
        first, rows = first_row(own), gather(own)
        slab = None if self.slabs is None else slab_of(gather(position), self.slabs)
        value = slab_contrast(rows, slab, self.temperature, self.cross_subject, slice(first, first + len(own)))
        return {"contrast": self.weight * value}


@full_precision
def slab_contrast(
    embeddings: Float[Tensor, "samples views dim"],
    slab: Int[Tensor, " samples"] | None,
    temperature: float,
    cross_subject: float = 0.0,
    anchors: slice = slice(None),
) -> Float[Tensor, ""]:
    r"""Contrast each view of a sample with the samples of other slabs, and return the mean over pairs of views.

    .. math:: \ell_{ab} = \log\Bigl(e^{s_{ab}} + \sum_{k \in N(a)} e^{s_{ak}}\Bigr) - s_{ab},\quad
        s_{ab} = \hat z_a \cdot \hat z_b / \tau,\quad N(a) = \{k : \text{slab}_k \neq \text{slab}_a\}

    L is the mean of ℓ over the ordered pairs of two views of one sample. With a `cross_subject` of c, the result is
    ``(1 - c) L + c L'``, where L' is the mean over the pairs of different samples of one slab. A row without negatives
    gives 0. The computation runs outside of autocast, in fp32 at least.

    Args:
        embeddings: z, of all processes.
        slab: number of each sample's slab; None: each sample is a slab of its own (SimCLR).
        temperature: τ, above 0.
        cross_subject: c, 0 up to 1.
        anchors: this process's own samples; on several processes, the mean of the results over the processes is the
            result of one process with all samples.

    Raises:
        ValueError: `temperature` is not above 0.

    Example:
        >>> import torch
        >>> same = torch.ones(12, 3, 8)
        >>> round(float(slab_contrast(same, torch.arange(12) % 4, 0.1)), 6)  # log(1 + 27)
        3.332205
    """
    check_temperature(temperature)
    samples, views, _ = embeddings.shape
    slab = torch.arange(samples, device=embeddings.device) if slab is None else slab
    z = F.normalize(embeddings, dim=-1)
    logits = torch.einsum("avd,kwd->avkw", z[anchors] / temperature, z)
    same_slab = slab[anchors, None] == slab
    negatives = logits.masked_fill(same_slab[:, None, :, None], LEAST).flatten(2).logsumexp(2)
    own = torch.arange(samples, device=slab.device)
    itself = own[anchors, None] == own
    partners = ~torch.eye(views, dtype=torch.bool, device=slab.device)
    value = _mean_over_pairs(logits, negatives, itself, partners)
    if cross_subject:
        others = _mean_over_pairs(logits, negatives, same_slab & ~itself, torch.ones_like(partners))
        value = (1 - cross_subject) * value + cross_subject * others
    return value


def _mean_over_pairs(
    logits: Float[Tensor, "anchors views samples views"],
    negatives: Float[Tensor, "anchors views"],
    samples: Bool[Tensor, "anchors samples"],
    views: Bool[Tensor, "views views"],
) -> Float[Tensor, ""]:
    """Average ℓ over the pairs of marked samples and marked views."""
    anchor, other = samples.nonzero(as_tuple=True)
    pairs = logits[anchor, :, other]
    # log(e^s + e^n) - s; with torch's default threshold of 20, fp64 would lose its last digits
    values = F.softplus(negatives[anchor, :, None] - pairs, threshold=40)
    return mean_over_processes(values, views.expand_as(values))

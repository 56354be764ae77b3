"""Local InfoNCE: the same place in both views of a sample is contrasted with the other places of the sample."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medcl_monai.distributed import mean_over_processes
from medcl_monai.knobs import knob_types
from medcl_monai.losses.cosine import check_temperature
from medcl_monai.losses.infonce import LEAST
from medcl_monai.losses.terms import TermLoss
from medcl_monai.precision import full_precision
from medcl_monai.transforms.regions import Regions, sample_regions


class LocalInfoNCELoss(TermLoss):
    """Trains each region to find itself in the other view's feature map, among all regions of the same sample.

    The loss is the local term of Hassanpour et al. 2024 (https://arxiv.org/abs/2402.14611). In the authors' code the
    local term reads the image, so the term trains nothing. Differences from the authors' code: regions are taken from a
    feature map; a region is the same physical place in both views; each region is its own positive. The views draw the
    regions with `draw_regions`.

    Args:
        temperature: the cosine similarities are divided by this number, the paper's τ; no unit, above 0.
        min_distance: two regions nearer to each other than this distance, in either view, are not used as negatives of
            each other; in cells of the feature map, 0 or more. 0: all other regions of the sample are negatives.
        match: function that finds each region in the other view's feature map, `match_by_location` or
            `match_by_feature`; None: `match_by_location`.
        weight: weight of this term in the sum that is minimised; no unit, 0 or more. 0: the term is left out.
        query: key of the feature map that is trained in the network's output.
        key: key of the other view's feature map in the network's output.
        of_view: number of the view whose map `query` is, 1 or 2.

    Raises:
        ValueError: a number is out of range; in `forward`: the target has no ``regions``, or the output has no maps.
    """

    contrasts = ("local",)

    @knob_types
    def __init__(
        self,
        temperature: float = 0.2,
        min_distance: float = 1.0,
        match: Callable | None = None,
        weight: float = 1.0,
        query: str = "local_query",
        key: str = "local_key",
        of_view: int = 1,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if min_distance < 0 or weight < 0 or of_view not in (1, 2):
            raise ValueError(
                f"LocalInfoNCELoss: min_distance {min_distance} and weight {weight} must be 0 or more, "
                f"of_view {of_view} 1 or 2"
            )
        self.temperature, self.min_distance, self.weight = temperature, min_distance, weight
        self.match, self.query, self.key = match_by_location if match is None else match, query, key
        self.of_view = of_view

    def forward(self, output: Mapping[str, Tensor], target: Mapping[str, object]) -> dict[str, Tensor]:
        """Return the weighted term ``local`` of two maps (B, C, *L); `target` holds ``regions``.

        If the weight is 0, no term is returned.
        """
        if self.weight == 0:
            return {}
        if "regions" not in target:
            raise ValueError(f"LocalInfoNCELoss: the target holds no regions, but {list(target)}: the views draw them")
        if self.query not in output:
            raise ValueError(
                f"LocalInfoNCELoss: the network gives no {self.query!r}: give the network a local_level, or this loss "
                "the weight 0"
            )
        regions, key = Regions(*target["regions"]), output[self.key]
        if self.of_view == 2:
            regions = Regions(regions.points_2, regions.points_1, regions.valid)
        anchor = sample_regions(output[self.query], regions.points_1)
        positive, regions = self.match(anchor, key, regions)
        near = near_regions(regions, key.shape[2:], self.min_distance)
        rows = local_infonce_rows(anchor, positive, regions.valid, near, self.temperature)
        return {"local": self.weight * mean_over_processes(rows, regions.valid)}


def match_by_location(
    anchor: Float[Tensor, "batch regions dim"], key_map: Float[Tensor, "batch dim *size"], regions: Regions
) -> tuple[Float[Tensor, "batch regions dim"], Regions]:
    """Sample the key map at the physical places of the anchors, which the warps of the views give."""
    return sample_regions(key_map, regions.points_2), regions


@full_precision
def match_by_feature(
    anchor: Float[Tensor, "batch regions dim"], key_map: Float[Tensor, "batch dim *size"], regions: Regions
) -> tuple[Float[Tensor, "batch regions dim"], Regions]:
    """Find the cells of the key map that are most similar to the anchors, wherever the cells lie.

    The idea is that of DenseCL (Wang et al. 2021, https://arxiv.org/abs/2011.09157). The function is for warps that are
    elastic or unknown.
    """
    size = key_map.shape[2:]
    cells = F.normalize(key_map.detach().flatten(2).to(anchor), dim=1)
    best = (F.normalize(anchor.detach(), dim=-1) @ cells).argmax(-1)
    places = torch.stack(torch.unravel_index(best, size)[::-1], -1)
    sides = torch.tensor(tuple(size)[::-1], device=best.device)
    points_2 = ((2 * places + 1) / sides - 1).to(regions.points_1)
    positive = cells.mT.gather(1, best[..., None].expand(-1, -1, cells.shape[1]))
    return positive, regions._replace(points_2=points_2)


def near_regions(
    regions: Regions, size: tuple[int, ...], min_distance: float
) -> Bool[Tensor, "batch regions regions"]:
    """Mark the pairs of regions of a sample that are nearer to each other than `min_distance` cells, in either view."""
    near = []
    for points in regions[:2]:
        cells = points * (torch.tensor(tuple(size)[::-1]).to(points) / 2)
        near.append((cells[:, :, None] - cells[:, None]).abs().amax(-1) < min_distance)
    return near[0] | near[1]


def local_infonce(
    anchor: Float[Tensor, "batch regions dim"],
    positive: Float[Tensor, "batch regions dim"],
    valid: Bool[Tensor, "batch regions"],
    near: Bool[Tensor, "batch regions regions"],
    temperature: float,
) -> Float[Tensor, ""]:
    r"""Compute the cross entropy of each region against the regions of its sample, as the mean over the valid regions.

    .. math:: \ell_r = \log \sum_{s \in V(r)} e^{a_r \cdot b_s / \tau} - a_r \cdot b_r / \tau

    V(r) contains r and the valid regions that are not near r. If no region is valid, the loss is 0. Only the anchors
    receive a gradient. The embeddings are normalised, and the computation runs outside of autocast, in fp32 at least.

    Args:
        anchor: embeddings of the regions in view 1.
        positive: embeddings of the same regions in view 2.
        valid: the regions that both views show.
        near: the pairs of regions that are too near to each other to be negatives.
        temperature: τ, above 0.

    Raises:
        ValueError: `temperature` is not above 0.
    """
    rows = local_infonce_rows(anchor, positive, valid, near, temperature)
    return (rows * valid).sum() / valid.sum().clamp(min=1)


@full_precision
def local_infonce_rows(
    anchor: Float[Tensor, "batch regions dim"],
    positive: Float[Tensor, "batch regions dim"],
    valid: Bool[Tensor, "batch regions"],
    near: Bool[Tensor, "batch regions regions"],
    temperature: float,
) -> Float[Tensor, "batch regions"]:
    """Compute the loss ℓ of each region, valid or not; `local_infonce` gives the formula."""
    check_temperature(temperature)
    a = F.normalize(anchor, dim=-1) / temperature
    b = F.normalize(positive.detach().to(a), dim=-1)
    logits = a @ b.mT
    kept = logits.masked_fill(~told_apart(valid, near), LEAST)
    return kept.logsumexp(-1) - logits.diagonal(dim1=1, dim2=2)


def told_apart(
    valid: Bool[Tensor, "batch regions"], near: Bool[Tensor, "batch regions regions"]
) -> Bool[Tensor, "batch regions regions"]:
    """Mark, for each region, the region itself and the valid regions of its sample that are not near."""
    return torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device) | (valid[:, None] & ~near)

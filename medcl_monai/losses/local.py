"""Contrast of regions inside a sample: the same place in both views against the sample's other places."""

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
    """Each region must find itself in the other view's map among the regions of its sample.

    The local term of Hassanpour et al. 2024 (https://arxiv.org/abs/2402.14611). Differs from the authors' code, whose
    local term reads the image and so trains nothing, in: regions of a feature map, the same physical place in both
    views, each region its own positive. The views draw the regions, see `draw_regions`.

    Args:
        temperature: divides the cosine similarities, above 0.
        min_distance: regions nearer than this in either view are no negatives of each other; cells of the map, 0 or
            more.
        match: finds each region in the other view's map: `match_by_location` (None) or `match_by_feature`.
        weight: of this term in the sum that is minimised. No unit; 0 leaves the term out.
        query: key of the map of view 1 in the network's output.
        key: key of the map of view 2.

    Raises:
        ValueError: a number out of range; in `forward`: a target without ``regions``.
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
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if min_distance < 0 or weight < 0:
            raise ValueError(f"LocalInfoNCELoss: min_distance {min_distance} and weight {weight} must be 0 or more")
        self.temperature, self.min_distance, self.weight = temperature, min_distance, weight
        self.match, self.query, self.key = match_by_location if match is None else match, query, key

    def forward(self, output: Mapping[str, Tensor], target: Mapping[str, object]) -> dict[str, Tensor]:
        """The one weighted term of two maps (B, C, *L); `target` holds ``regions``."""
        if self.weight == 0:
            return {}
        if "regions" not in target:
            raise ValueError(f"LocalInfoNCELoss: the target holds no regions, but {list(target)}: the views draw them")
        regions, key = Regions(*target["regions"]), output[self.key]
        anchor = sample_regions(output[self.query], regions.points_1)
        positive, regions = self.match(anchor, key, regions)
        near = near_regions(regions, key.shape[2:], self.min_distance)
        rows = local_infonce_rows(anchor, positive, regions.valid, near, self.temperature)
        return {"local": self.weight * mean_over_processes(rows, regions.valid)}


def match_by_location(
    anchor: Float[Tensor, "batch regions dim"], key_map: Float[Tensor, "batch dim *size"], regions: Regions
) -> tuple[Float[Tensor, "batch regions dim"], Regions]:
    """The key map at the same physical places, as the views' warps give them."""
    return sample_regions(key_map, regions.points_2), regions


@full_precision
def match_by_feature(
    anchor: Float[Tensor, "batch regions dim"], key_map: Float[Tensor, "batch dim *size"], regions: Regions
) -> tuple[Float[Tensor, "batch regions dim"], Regions]:
    """The cells of the key map that look most like the anchors, whatever their place.

    The idea of DenseCL (Wang et al. 2021, https://arxiv.org/abs/2011.09157); for warps that are elastic or unknown.
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
    """Which regions of a sample are nearer than `min_distance` cells of a map to each other, in either view."""
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
    r"""Cross entropy of each region against the regions of its sample; mean over the valid ones, 0 if there is none.

    .. math:: \ell_r = \log \sum_{s \in V(r)} e^{a_r \cdot b_s / \tau} - a_r \cdot b_r / \tau

    V(r) holds r and the valid regions that are not near to it. Gradient goes to the anchors alone; all numbers leave
    autocast, are normalised and fp32 at least.

    Args:
        anchor: embeddings of the regions in view 1.
        positive: of the same regions in view 2.
        valid: which both views show.
        near: which are too near to each other to be negatives.
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
    """The ℓ of each region, valid or not; see `local_infonce`."""
    check_temperature(temperature)
    a = F.normalize(anchor, dim=-1) / temperature
    b = F.normalize(positive.detach().to(a), dim=-1)
    logits = a @ b.mT
    itself = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    dropped = (near | ~valid[:, None]) & ~itself
    return logits.masked_fill(dropped, LEAST).logsumexp(-1) - logits.diagonal(dim1=1, dim2=2)

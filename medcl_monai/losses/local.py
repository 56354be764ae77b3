"""Contrast of regions inside a sample: the same place in both views against the sample's other places."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medcl_monai.distributed import mean_over_processes
from medcl_monai.knobs import knob_types
from medcl_monai.losses.infonce import LEAST
from medcl_monai.losses.positional import check_temperature
from medcl_monai.transforms.regions import draw_regions, sample_regions


class Regions(NamedTuple):
    """Points of both views (B, R, D), last spatial axis first in [-1, 1], and which are valid (B, R)."""

    points_1: Tensor
    points_2: Tensor
    valid: Tensor


class LocalInfoNCELoss(nn.Module):
    """Each region must find itself in the other view's map among the regions of its sample.

    The local term of Hassanpour et al. 2024 (https://arxiv.org/abs/2402.14611). Differs from the authors' code, whose
    local term reads the image and so trains nothing, in: regions of a feature map, the same physical place in both
    views, each region its own positive.

    Args:
        temperature: divides the cosine similarities, above 0.
        regions: per sample, at least 2.
        overdraw: so many times as many points are tried to find them, at least 1.
        min_distance: regions nearer than this in either view are no negatives of each other; cells of the map, 0 or
            more.
        match: finds each region in the other view's map: `match_by_location` or `match_by_feature`.
        weight: of this term in the sum that is minimised. No unit.

    Raises:
        ValueError: a number out of range.
    """

    @knob_types
    def __init__(
        self,
        temperature: float = 0.2,
        regions: int = 20,
        overdraw: float = 4.0,
        min_distance: float = 1.0,
        match: Callable | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if regions < 2 or overdraw < 1 or min_distance < 0:
            raise ValueError(
                f"LocalInfoNCELoss: regions {regions} must be at least 2, overdraw {overdraw} at least 1, "
                f"min_distance {min_distance} 0 or more"
            )
        self.temperature, self.regions, self.overdraw, self.min_distance = temperature, regions, overdraw, min_distance
        self.match, self.weight = match_by_location if match is None else match, weight

    def forward(self, output: Mapping[str, Tensor], target: Mapping[str, object]) -> dict[str, Tensor]:
        """The one weighted term of ``local_query`` and ``local_key`` (B, C, *L).

        Args:
            output: of the network.
            target: holds ``warp_1``, ``warp_2``, perhaps ``foreground_1``; or ready ``regions``.
        """
        query, key = output["local_query"], output["local_key"]
        with torch.autocast(query.device.type, enabled=False):  # places and cosines would be found in half precision
            regions = Regions(*target["regions"]) if "regions" in target else self._draw(target, query)
            anchor = sample_regions(query, regions.points_1)
            positive, regions = self.match(anchor, key, regions)
            near = near_regions(regions, key.shape[2:], self.min_distance)
            rows = local_infonce_rows(anchor, positive, regions.valid, near, self.temperature)
            return {"local": self.weight * mean_over_processes(rows, regions.valid)}

    def _draw(self, target: Mapping[str, object], like: Tensor) -> Regions:
        if "warp_1" in target:
            warps = target["warp_1"], target["warp_2"]
        elif self.match is match_by_feature:
            warps = (torch.eye(like.ndim - 2, like.ndim - 1, device=like.device).expand(len(like), -1, -1),) * 2
        else:
            raise ValueError("match_by_location needs warp_1 and warp_2 in the target; match_by_feature does not")
        return Regions(*draw_regions(*warps, self.regions, self.overdraw, target.get("foreground_1")))


def match_by_location(
    anchor: Float[Tensor, "batch regions dim"], key_map: Float[Tensor, "batch dim *size"], regions: Regions
) -> tuple[Float[Tensor, "batch regions dim"], Regions]:
    """The key map at the same physical places, as the views' warps give them."""
    return sample_regions(key_map, regions.points_2), regions


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


def local_infonce_rows(
    anchor: Float[Tensor, "batch regions dim"],
    positive: Float[Tensor, "batch regions dim"],
    valid: Bool[Tensor, "batch regions"],
    near: Bool[Tensor, "batch regions regions"],
    temperature: float,
) -> Float[Tensor, "batch regions"]:
    """The ℓ of each region, valid or not; see `local_infonce`."""
    check_temperature(temperature)
    with torch.autocast(anchor.device.type, enabled=False):  # autocast would take the logits in half precision
        dtype = torch.promote_types(anchor.dtype, torch.float32)
        a = F.normalize(anchor.to(dtype), dim=-1) / temperature
        b = F.normalize(positive.detach().to(dtype), dim=-1)
        logits = a @ b.mT
        itself = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        dropped = (near | ~valid[:, None]) & ~itself
        return logits.masked_fill(dropped, LEAST).logsumexp(-1) - logits.diagonal(dim1=1, dim2=2)

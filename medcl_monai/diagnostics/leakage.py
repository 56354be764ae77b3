"""Leakage through skip connections: can a decoder find a place in another view by what the skip connections show?"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from medcl_monai.diagnostics.held_out import BATCH, held_out_views
from medcl_monai.losses.local import near_regions, told_apart
from medcl_monai.networks.encode import decode, encode
from medcl_monai.networks.statistics import require_statistics
from medcl_monai.transforms.regions import Regions, sample_regions

# factors of the skip connections and of the deepest map
GIVEN = {"all": (1.0, 1.0), "skips": (1.0, 0.0), "deepest": (0.0, 1.0)}


@torch.no_grad()
def leakage(
    backbone: nn.Module,
    dataset: Dataset,
    views: Callable,
    level: int,
    samples: int = 256,
    min_distance: float = 1.0,
    seed: int = 0,
) -> dict[str, float]:
    """Measure how often a place finds itself in the other view, by what the decoder is given.

    A dense contrast of a decoder asks each region of a view for the same region of the other view. If the decoder finds
    the regions as often when the deepest map is zero, then the skip connections alone solve the task, and the contrast
    teaches the decoder nothing about the deepest map.

    Args:
        backbone: the network on the CPU, in `eval()`, for which `encode` and `decode` have cases.
        dataset: samples with ``image``, ``position`` and ``subject``, such as a `SliceDataset` of held-out people.
        views: views that draw regions, such as `SwinMoCoViews` with `regions`.
        level: number of the decoder's map, 0 (coarsest) and up.
        samples: number of samples, evenly spaced; fewer if the data set has fewer.
        min_distance: regions nearer to each other than this distance are not told apart; in cells of the map.
        seed: seed of the views, so that networks are compared on the same views.

    Returns:
        The share of regions whose most similar region of the other view, by cosine, is the same place, if the decoder
        is given ``all`` maps, the ``skips`` alone or the ``deepest`` map alone; and ``chance``, the share for a guess.

    Raises:
        ValueError: the views draw no regions, or the backbone is in `eval()` with batch norm statistics that were never
            computed.
    """
    require_statistics(backbone)
    pair, target = held_out_views(dataset, views, samples, seed)
    if "regions" not in target:
        raise ValueError(f"leakage: the target holds no regions, but {list(target)}: the views draw them")
    hits, guesses, valid = dict.fromkeys(GIVEN, 0.0), 0.0, 0
    for part in torch.arange(len(pair["view_1"])).split(BATCH):
        maps = [encode(backbone, pair[name][part]) for name in ("view_1", "view_2")]
        regions = Regions(*(tensor[part] for tensor in target["regions"]))
        for given, factors in GIVEN.items():
            decoded = [_decode(backbone, of_view, level, *factors) for of_view in maps]
            found, others = _found(*decoded, regions, min_distance)
            hits[given] += float((found & regions.valid).sum())
        guesses += float((regions.valid / others).sum())
        valid += int(regions.valid.sum())
    return {given: count / max(valid, 1) for given, count in {**hits, "chance": guesses}.items()}


def _decode(backbone: nn.Module, maps: list[Tensor], level: int, skips: float, deepest: float) -> Tensor:
    return decode(backbone, [*(skips * each for each in maps[:-1]), deepest * maps[-1]], level + 1)


def _found(first: Tensor, second: Tensor, regions: Regions, min_distance: float) -> tuple[Tensor, Tensor]:
    """Return whether each region finds itself, and among how many regions."""
    near = near_regions(regions, second.shape[2:], min_distance)
    a = F.normalize(sample_regions(first, regions.points_1), dim=-1)
    b = F.normalize(sample_regions(second, regions.points_2), dim=-1)
    asked = told_apart(regions.valid, near)
    best = (a @ b.mT).masked_fill(~asked, -torch.inf).argmax(-1)
    return best == torch.arange(a.shape[1]), asked.sum(-1)

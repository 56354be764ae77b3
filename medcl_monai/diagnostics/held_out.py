"""Figures of an encoder on samples that pre-training did not see: ranks, and whether views find their partners."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from medcl_monai.diagnostics.figures import effective_rank, numerical_rank, participation_ratio, spectrum
from medcl_monai.networks.encode import encode, encoder_parts
from medcl_monai.networks.heads import pooled
from medcl_monai.networks.statistics import require_statistics

BATCH = 64


@torch.no_grad()
def held_out_figures(
    backbone: nn.Module, dataset: Dataset, views: Callable, samples: int = 512, seed: int = 0
) -> dict[str, float]:
    """Measure the pooled last map of an encoder on evenly spaced samples and on two views of each sample.

    Args:
        backbone: the network on the CPU, in `eval()`, for which `encode` has a case.
        dataset: samples with ``image``, ``position`` and ``subject``, such as a `SliceDataset` of held-out people.
        views: the views of the method.
        samples: number of samples, at least 2; fewer if the data set has fewer.
        seed: seed of the views, so that encoders are compared on the same views.

    Returns:
        ``effective_rank``, ``numerical_rank`` and ``participation_ratio`` of the first views' features, and
        ``retrieval``, the share of first views whose nearest second view is their partner.

    Raises:
        ValueError: the encoder is in `eval()` with batch norm statistics that were never computed.
    """
    for name in encoder_parts(backbone):  # the decoder plays no part
        require_statistics(backbone.get_submodule(name))
    pair, _ = held_out_views(dataset, views, samples, seed)
    first, second = (
        torch.cat([pooled(encode(backbone, part)[-1]) for part in pair[name].split(BATCH)])
        for name in ("view_1", "view_2")
    )
    return {
        "effective_rank": float(effective_rank(first)),
        "numerical_rank": float(numerical_rank(spectrum(first.double()))),
        "participation_ratio": float(participation_ratio(first)),
        "retrieval": float(retrieval(first, second)),
    }


def held_out_views(
    dataset: Dataset, views: Callable, samples: int, seed: int
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return the views and the target of evenly spaced samples; torch's own random numbers stay as they are."""
    places = torch.linspace(0, len(dataset) - 1, min(samples, len(dataset))).long().tolist()
    items = [dataset[place] for place in places]
    batch = {key: torch.stack([item[key] for item in items]) for key in ("image", "position", "subject")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return views(batch)


def retrieval(first: Float[Tensor, "batch dim"], second: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Return the share of rows whose nearest row of the other view, by cosine, is their partner.

    Chance is 1 / batch.

    Example:
        >>> float(retrieval(torch.eye(4), 2 * torch.eye(4)))
        1.0
    """
    nearest = (F.normalize(first, dim=1) @ F.normalize(second, dim=1).T).argmax(1)
    return (nearest == torch.arange(len(nearest), device=nearest.device)).double().mean()

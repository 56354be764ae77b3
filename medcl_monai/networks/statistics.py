"""Statistics of batch norm: computed for random networks, demanded wherever a network is read in `eval()`."""

import torch
from torch import nn
from torch.utils.data import Dataset

from medcl_monai.knobs import knob_types

BATCH = 64


@knob_types
@torch.no_grad()
def compute_statistics(network: nn.Module, dataset: Dataset, samples: int = 256) -> None:
    """Compute the running mean and variance of each batch norm that never saw a batch; the others keep theirs.

    A random network in `eval()` divides by a variance of 1 that nobody computed, layer after layer, and its features
    nearly vanish. So a frozen random encoder is a fair control only after this function. A network whose statistics
    came with its weights is left as it is.

    Args:
        network: changed in place, on the CPU; its modes (train, eval) stay as they are.
        dataset: of samples with an ``image`` (C, *S), unlabelled ones if possible; `samples` of them are read, evenly
            spaced, and their statistics are averaged over batches of 64.
        samples: number of samples, at least 2.

    Raises:
        ValueError: fewer than 2 samples.
    """
    layers = missing_statistics(network)
    if not layers:
        return
    count = min(samples, len(dataset))
    if count < 2:
        raise ValueError(f"compute_statistics: {count} samples give no variance: at least 2 are needed")
    places = torch.linspace(0, len(dataset) - 1, count).long().tolist()
    modes = {module: module.training for module in network.modules()}
    momenta = {layer: layer.momentum for layer in layers.values()}
    network.eval()
    for layer in momenta:
        layer.train()
        layer.momentum = None  # the mean over batches instead of a decaying one
        layer.num_batches_tracked.zero_()
    for batch in range(0, count - 1, BATCH):  # a last batch of one sample would have no variance
        network(torch.stack([dataset[place]["image"] for place in places[batch : batch + BATCH]]))
    for layer, momentum in momenta.items():
        layer.momentum = momentum
    for module, mode in modes.items():
        module.training = mode


def missing_statistics(network: nn.Module) -> dict[str, nn.Module]:
    """Names and layers of `network` whose running statistics are still those of a new layer: mean 0, variance 1.

    The values are looked at and not the count of batches, since many public files leave the count out.
    """
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.track_running_stats
        and not bool(layer.running_mean.any())
        and bool((layer.running_var == 1).all())
    }


def require_statistics(network: nn.Module) -> None:
    """Refuse a network that would be read in `eval()` with statistics that were never computed.

    Args:
        network: as it stands: layers in train mode compute their statistics now.

    Raises:
        ValueError: naming the first such layer in `eval()`.
    """
    if missing := [name for name, layer in missing_statistics(network).items() if not layer.training]:
        kind = type(network).__name__
        raise ValueError(
            f"{kind}: the batch norm {missing[0]!r} ({len(missing)} in all) is frozen with statistics "
            "that were never computed, so its features mean nothing: start from weights, or call compute_statistics"
        )

"""Running statistics of batch norm: computed for random networks, required of networks that run in `eval()`."""

import math

import torch
from torch import nn
from torch.utils.data import Dataset

from medcl_monai.knobs import knob_types

BATCH = 64


@knob_types
@torch.no_grad()
def compute_statistics(network: nn.Module, dataset: Dataset, samples: int = 256) -> None:
    """Compute the running mean and variance of each batch norm layer that has never seen a batch.

    Other layers keep their statistics. A random network in `eval()` divides by a variance of 1 that was never computed,
    layer after layer, and its features nearly vanish. A frozen random encoder is therefore a fair control only after
    this function has run. A network whose statistics came with its weights does not change.

    Args:
        network: the network on the CPU, which is changed in place; the modes (train, eval) of its layers stay as they
            are.
        dataset: dataset of samples with an ``image`` (C, *S), without labels if possible. The function reads `samples`
            evenly spaced samples, and averages the statistics over batches of 64.
        samples: number of samples that are read, at least 2.

    Raises:
        ValueError: there are fewer than 2 samples.
    """
    layers = missing_statistics(network)
    if not layers:
        return
    count = min(samples, len(dataset))
    if count < 2:
        raise ValueError(f"compute_statistics: {count} samples give no variance: at least 2 are needed")
    places = torch.linspace(0, len(dataset) - 1, count).long()
    modes = {module: module.training for module in network.modules()}
    momenta = {layer: layer.momentum for layer in layers.values()}
    network.eval()
    for layer in momenta:
        layer.train()
        layer.momentum = None  # plain mean over batches instead of an exponential moving average
        layer.num_batches_tracked.zero_()
    for chunk in places.tensor_split(math.ceil(count / BATCH)):  # of nearly equal size: each batch counts alike
        network(torch.stack([dataset[place]["image"] for place in chunk.tolist()]))
    for layer, momentum in momenta.items():
        layer.momentum = momentum
    for module, mode in modes.items():
        module.training = mode


def missing_statistics(network: nn.Module) -> dict[str, nn.Module]:
    """Return the batch norm layers, by name, whose running statistics are those of a new layer: mean 0, variance 1.

    The function looks at the values and not at the count of batches, because many public files leave out the count.
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
    """Raise an error if a batch norm in `eval()` has running statistics that were never computed.

    Args:
        network: the network in the modes in which it will run; layers in train mode are accepted, because such layers
            compute their statistics themselves.

    Raises:
        ValueError: a batch norm in `eval()` has no statistics; the error names the first such layer.
    """
    if missing := [name for name, layer in missing_statistics(network).items() if not layer.training]:
        kind = type(network).__name__
        raise ValueError(
            f"{kind}: the batch norm {missing[0]!r} ({len(missing)} in all) is frozen with statistics "
            "that were never computed, so its features mean nothing: start from weights, or call compute_statistics"
        )

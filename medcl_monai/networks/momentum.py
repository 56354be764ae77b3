"""A momentum copy of networks, and a queue of the embeddings of earlier samples."""

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from medcl_monai.curves import cosine
from medcl_monai.knobs import knob_types


class MomentumCopy(nn.Module):
    """Keeps copies of modules that follow slowly: ``copy ← momentum · copy + (1 - momentum) · source``.

    He et al. 2020 (MoCo), eq. 2, https://arxiv.org/abs/1911.05722. The parameters are averaged and get no gradient; the
    buffers are copied by value. The copies are updated after each optimiser step, whereas MoCo updates the copies
    before it computes the keys. Both orders give the same keys, bit for bit, because MoCo's first update changes
    nothing.

    Args:
        modules: modules that are copied, by name, such as ``{"encoder": …, "projector": …}``; ``copy["encoder"]`` is
            the copy of the encoder.
        momentum: share of the copy that an update keeps, 0 (each update makes the copy equal to its source) to 1 (the
            copy never changes).

    Raises:
        ValueError: `momentum` is out of range; in `update`: the names of the modules differ from the names of the
            copies.
    """

    @knob_types
    def __init__(self, modules: Mapping[str, nn.Module], momentum: float = 0.999) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"MomentumCopy: momentum must be 0 to 1, got {momentum}")
        self.momentum = momentum
        self.copies = nn.ModuleDict({name: deepcopy(module) for name, module in modules.items()})
        self.requires_grad_(False)

    def __getitem__(self, name: str) -> nn.Module:
        """Return the copy of the module `name`."""
        return self.copies[name]

    def update(self, modules: Mapping[str, nn.Module]) -> None:
        """Move the copies one step towards their sources; to be called after each optimiser step."""
        self._follow(modules, self.momentum)

    def follow_loads_of(self, module: nn.Module, sources: Callable[[], Mapping[str, nn.Module]]) -> None:
        """Make the copies equal to their sources whenever weights are loaded into `module`.

        Weights such as `initial_weights` are loaded after the copies were made.

        Args:
            module: the module whose `load_state_dict` is followed.
            sources: function that returns the modules that were copied, by name.
        """
        module.register_load_state_dict_post_hook(lambda *_: self.reset(sources()))

    def reset(self, modules: Mapping[str, nn.Module]) -> None:
        """Make the copies equal to their sources, after weights were loaded into the sources."""
        self._follow(modules, 0.0)

    @torch.no_grad()
    def _follow(self, modules: Mapping[str, nn.Module], momentum: float) -> None:
        if set(modules) != set(self.copies):
            raise ValueError(f"MomentumCopy: copies of {sorted(self.copies)} cannot follow {sorted(modules)}")
        for name, copy in self.copies.items():
            source = modules[name]
            copies, sources = list(copy.parameters()), list(source.parameters())
            if copies:
                get_ema_multi_avg_fn(momentum)(copies, sources, None)
            for ours, theirs in zip(copy.buffers(), source.buffers(), strict=True):
                ours.copy_(theirs)


def momentum_at(step: int, steps: int, start: float) -> float:
    """Return the momentum of the update after optimiser step `step`, which rises from `start` to 1 along a cosine.

    Chen, Xie and He 2021 (MoCo v3), as Grill et al. 2020 (BYOL): ``1 - (1 - start) (1 + cos(π step / steps)) / 2``.

    Args:
        step: number of optimiser steps that are done, 1 for the first update.
        steps: number of optimiser steps of the whole run, at least 1.
        start: momentum at the beginning, 0 to 1.

    Example:
        >>> [round(momentum_at(step, 300, 0.99), 7) for step in (0, 30, 150, 300)]
        [0.99, 0.9902447, 0.995, 1.0]
    """
    return 1 - (1 - start) * cosine(min(step / steps, 1.0))


class FeatureQueue(nn.Module):
    """Stores the most recent embeddings in a ring buffer, with the subject and the position of each embedding.

    New embeddings replace the oldest embeddings. The state dict holds the whole queue, so a resumed run continues with
    the same queue. At first the queue holds random unit vectors without a subject (subject -1), the same in every
    process.

    Args:
        length: number of embeddings in the queue, at least 1.
        dim: width of an embedding in channels, at least 1.

    Raises:
        ValueError: `length` or `dim` is below 1; in `push`: the embeddings have another width than the queue, or the
            numbers of embeddings, subjects and positions differ.
    """

    @knob_types
    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        if length < 1 or dim < 1:
            raise ValueError(f"FeatureQueue: length {length} and dim {dim} must be at least 1")
        rows = torch.randn(length, dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("features", nn.functional.normalize(rows, dim=1))
        self.register_buffer("subject", torch.full((length,), -1, dtype=torch.int64))
        self.register_buffer("position", torch.zeros(length, dtype=torch.float64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(
        self, keys: Float[Tensor, "rows dim"], subject: Int[Tensor, " subjects"], position: Shaped[Tensor, " positions"]
    ) -> None:
        """Write embeddings into the queue in order; of more embeddings than `length`, the last ones stay.

        Args:
            keys: embeddings of all processes, in any number.
            subject: number of the subject of each embedding, 0 or more.
            position: position of each embedding along the slice axis of its volume.
        """
        length, dim = self.features.shape
        if keys.shape[1] != dim:
            raise ValueError(f"FeatureQueue: keys are {keys.shape[1]} wide, the queue's rows {dim}")
        if not len(keys) == len(subject) == len(position):
            raise ValueError(
                f"FeatureQueue: {len(keys)} keys, {len(subject)} subjects and {len(position)} positions do not fit "
                "together: gather all of them over the processes, or none"
            )
        skipped = max(len(keys) - length, 0)
        places = (self.pointer + torch.arange(skipped, len(keys), device=self.pointer.device)) % length
        self.features[places] = keys[skipped:].to(self.features)
        self.subject[places] = subject[skipped:].to(self.subject)
        self.position[places] = position[skipped:].to(self.position)
        self.pointer.copy_((self.pointer + len(keys)) % length)
        self.filled.copy_((self.filled + len(keys)).clamp(max=length))

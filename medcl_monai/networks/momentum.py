"""A slow copy of networks, and a queue of what it made of earlier samples."""

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from medcl_monai.knobs import knob_types


class MomentumCopy(nn.Module):
    """Copies of modules that follow them slowly: ``copy ← momentum · copy + (1 - momentum) · source``.

    He et al. 2020 (MoCo), eq. 2, https://arxiv.org/abs/1911.05722. Parameters are averaged and get no gradient; buffers
    are copied by value. Updated after each optimiser step, the copy gives bit for bit the keys of MoCo's order (update
    before the key pass), whose first update does nothing.

    Args:
        modules: name to module, as ``{"encoder": …, "projector": …}``; ``copy["encoder"]`` is the copy.
        momentum: 0 (the source itself after each update) to 1 (never moves).

    Raises:
        ValueError: `momentum` out of range; in `update`: other modules than those that were copied.
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
        """The copy of a module."""
        return self.copies[name]

    def update(self, modules: Mapping[str, nn.Module]) -> None:
        """One step towards the sources, after an optimiser step."""
        self._follow(modules, self.momentum)

    def follow_loads_of(self, module: nn.Module, sources: Callable[[], Mapping[str, nn.Module]]) -> None:
        """Take over the sources whenever weights are loaded into `module`, as `initial_weights` are after the copy.

        Args:
            module: whose `load_state_dict` is followed.
            sources: gives the modules that were copied.
        """
        module.register_load_state_dict_post_hook(lambda *_: self.reset(sources()))

    def reset(self, modules: Mapping[str, nn.Module]) -> None:
        """Take over the sources as they are: for weights that were loaded into them after the copy was made."""
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


class FeatureQueue(nn.Module):
    """A ring buffer of embeddings, with the subject and position of each; the oldest give way.

    All of it is in the state dict, so a resumed run goes on with it. At first it holds random unit rows of no subject
    (-1), the same in every process.

    Args:
        length: rows, at least 1.
        dim: width of the embeddings, at least 1.

    Raises:
        ValueError: a number out of range; in `push`: embeddings of another width, or not as many subjects or positions.
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
        """Put rows of any number into the ring, in order; of more than its length the last ones stay.

        Args:
            keys: embeddings, of all processes.
            subject: of each, 0 or more.
            position: of each along the volume's axis.
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

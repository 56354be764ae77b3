"""Uncertainty-aware feature selection: a block that weights the cells of a map by the block's own confidence."""

import inspect
import math
from collections.abc import Sequence
from typing import no_type_check

import torch
from monai.networks.layers import Conv, get_norm_layer
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from medcl_monai.knobs import knob_types
from medcl_monai.networks.modules import module_named

NAME = "uafs"  # of the block within the module that it follows
GROUPS = 4
NORM = ("group", {"num_groups": GROUPS})


class _Conv2d(nn.Conv2d):
    bias: Tensor  # torch declares the bias as optional, and then MONAI's DynUNet cannot be traced with the block


class _Conv3d(nn.Conv3d):
    bias: Tensor


BIASED = {2: _Conv2d, 3: _Conv3d}


class UAFS(nn.Module):
    r"""Multiplies each cell of a map by 1 + γ a, where a is how sure a small head is of the cell's state.

    Li et al. 2022, https://arxiv.org/abs/2201.08779 (UAFR in the journal version).

    .. math::
        u = \text{head}(x) \qquad p = \text{softmax}(u) \qquad
        a = 1 + \frac{\sum_m p_m \log p_m}{\log M} \qquad y = x (1 + \gamma a)

    The confidence a, 0 to 1, is 1 minus the normalised entropy of the M states. The block has no loss of its own.
    Differs from the authors' code: the gate γ starts at 0, so that a network with carried weights starts as the same
    function; γ gets a gradient from the first step, the head from the second. The last convolution of the head must not
    start at 0 instead: its gradient would be 0 for ever.

    Args:
        spatial_dims: number of spatial dimensions of the map, 2 or 3.
        channels: number of channels of the map, C.
        hidden: width of the head, a multiple of 4 for the default norm; None: C / 4 in steps of 4, at least 4.
        states: number of states M, at least 2.
        norm: normalisation within the head, as MONAI's networks take it.
        gate: whether γ is a trained parameter that starts at 0; false: γ is 1, the authors' block.

    Raises:
        ValueError: `states` is below 2.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        hidden: int | None = None,
        states: int = 2,
        norm: str | Sequence[object] = NORM,
        gate: bool = True,
    ) -> None:
        super().__init__()
        if states < 2:
            raise ValueError(f"UAFS: states must be at least 2, got {states}")
        hidden = GROUPS * max(1, channels // (4 * GROUPS)) if hidden is None else hidden
        self.head = nn.Sequential(
            Conv[Conv.CONV, spatial_dims](channels, hidden, kernel_size=3, padding=1, bias=False),
            get_norm_layer(norm if isinstance(norm, str) else tuple(norm), spatial_dims, hidden),
            nn.ReLU(inplace=True),
            BIASED[spatial_dims](hidden, states, kernel_size=1),
        )
        self.log_states = math.log(states)
        self.gate = nn.Parameter(torch.zeros(())) if gate else None

    @no_type_check  # TorchScript compiles the function as it stands here, so no check of types may wrap it
    def forward(self, x: Tensor) -> Tensor:
        """Return the map (B, C, *S), each cell multiplied by 1 + γ a."""
        confidence = self.confidence(x).to(x.dtype)
        if self.gate is not None:
            return x * (1 + self.gate.to(x.dtype) * confidence)
        return x * (1 + confidence)

    @torch.jit.export
    @no_type_check
    def confidence(self, x: Tensor) -> Tensor:
        """Return the confidence a of each cell, (B, 1, *S), 0 to 1, in fp32 at least."""
        states = self.head(x)
        logs = torch.log_softmax(states if states.dtype == torch.float64 else states.float(), 1)
        return 1 + (logs.exp() * logs).sum(1, keepdim=True) / self.log_states


@no_type_check
def select(self, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Pass the output of a module through the module's UAFS block: the forward hook of `insert_uafs`."""
    return self.uafs(output)


@knob_types
def insert_uafs(
    network: nn.Module, sites: Sequence[str], norm: str | Sequence[object] = NORM, gate: bool = True
) -> nn.Module:
    """Let a UAFS block follow each of the named modules of a network.

    The block becomes the child ``uafs`` of the named module. An `nn.Sequential` runs the block as its last child; in
    any other module a forward hook applies the block. So no tensor of the network changes its name, weights of the
    plain network load as before, and TorchScript, tracing, pickle and deepcopy keep the block. Insert blocks before the
    optimiser reads the parameters.

    Args:
        network: the network, which is changed in place.
        sites: names of the modules whose output is selected, each with a convolution inside and one input; an empty
            list leaves the network as it is.
        norm: normalisation within the blocks, as MONAI's networks take it.
        gate: whether the blocks start as the identity, with a trained gate; false: the authors' block.

    Returns:
        The network.

    Raises:
        ValueError: there is no such module, a site is named twice, or the module has no convolution, several inputs,
            or a block already.

    Example:
        >>> from monai.networks.nets import BasicUNet
        >>> network = insert_uafs(BasicUNet(2, features=(8, 8, 8, 8, 8, 8)), ["upcat_1.convs"])
        >>> [name for name in network.state_dict() if "uafs" in name][:2]
        ['upcat_1.convs.uafs.gate', 'upcat_1.convs.uafs.head.0.weight']
    """
    if len(set(sites)) != len(sites):
        raise ValueError(f"insert_uafs: a site is named twice: {list(sites)}")
    chosen = {site: module_named(network, site, "insert_uafs") for site in sites}
    convolutions = {site: _last_convolution(module) for site, module in chosen.items()}
    for site, module in chosen.items():
        if convolutions[site] is None:
            raise ValueError(f"insert_uafs: {site!r} has no convolution, so its channels are unknown")
        if hasattr(module, NAME):
            raise ValueError(f"insert_uafs: {site!r} has a UAFS block already")
        _require_one_input(site, module)
    for site, module in chosen.items():
        convolution = convolutions[site]
        block = UAFS(convolution.weight.ndim - 2, convolution.out_channels, norm=norm, gate=gate)
        module.add_module(NAME, block.to(convolution.weight))
        if type(module).forward is not nn.Sequential.forward:  # which runs its new last child without a hook
            module.register_forward_hook(select)
    return network


def _last_convolution(module: nn.Module) -> nn.Module | None:
    """Return the last convolution inside a module, leaving out those of blocks that were inserted before."""
    of_blocks = {id(part) for block in module.modules() if isinstance(block, UAFS) for part in block.modules()}
    convolutions = [part for part in module.modules() if isinstance(part, _ConvNd) and id(part) not in of_blocks]
    return convolutions[-1] if convolutions else None


def _require_one_input(site: str, module: nn.Module) -> None:
    if _inputs(module) == 1:
        return
    inner = [name for name, part in module.named_children() if _inputs(part) == 1 and _last_convolution(part)]
    cure = f"; use {f'{site}.{inner[-1]}'!r}" if inner else ""
    raise ValueError(f"insert_uafs: {site!r} takes {_inputs(module)} inputs{cure}")


def _inputs(module: nn.Module) -> int:
    """Return how many inputs a module must be given."""
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(parameter.default is inspect.Parameter.empty for parameter in parameters)

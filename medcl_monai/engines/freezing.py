"""An encoder that stands still at the beginning of a training."""

from collections.abc import Sequence

from torch import nn

from medcl_monai.distributed import bare
from medcl_monai.knobs import knob_types


class FrozenEncoder:
    """Keeps an encoder still in the first epochs: its tensors do not move, and its norm layers stay in `eval`.

    Args:
        network: the network, wrapped for several processes or not.
        prefixes: beginnings of the names of the encoder's tensors.
        epochs: number of first epochs in which the encoder does not move; 0: the encoder is never frozen.

    Raises:
        ValueError: `epochs` is negative, or no trained tensor begins with one of the prefixes.
    """

    @knob_types
    def __init__(self, network: nn.Module, prefixes: Sequence[str], epochs: int = 0) -> None:
        if epochs < 0:
            raise ValueError(f"FrozenEncoder: epochs must be 0 or more, got {epochs}")
        self.epochs, beginnings = epochs, tuple(prefixes)
        plain = bare(network)
        # several processes need the gradient of each parameter in each step, so only a bare network may lose some
        self._may_drop_gradients = plain is network
        self._modules = [module for name, module in plain.named_modules() if f"{name}.".startswith(beginnings)]
        named = [parameter for name, parameter in plain.named_parameters() if name.startswith(beginnings)]
        self._parameters = [parameter for parameter in named if parameter.requires_grad]
        if epochs and not self._parameters:
            first = next(iter(plain.state_dict()), None)
            raise ValueError(f"freeze_encoder_epochs: no trained tensor begins with one of {beginnings}, as {first!r}")

    def holds(self, epoch: int) -> bool:
        """Whether the encoder stands still in this epoch, counted from 1."""
        return epoch <= self.epochs

    def set_modes(self, epoch: int) -> None:
        """Put the norm layers of a frozen encoder into `eval`; its parameters lose or get back their gradients."""
        if self.holds(epoch):
            for module in self._modules:
                module.eval()
        if self.epochs and self._may_drop_gradients:
            for parameter in self._parameters:
                parameter.requires_grad_(not self.holds(epoch))

    def drop_gradients(self, epoch: int) -> None:
        """Hide the gradients of a frozen encoder from the optimiser, and from the norm that is clipped."""
        if self.holds(epoch):
            for parameter in self._parameters:
                parameter.grad = None

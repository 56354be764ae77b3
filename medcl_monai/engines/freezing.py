"""Freezing of an encoder in the first epochs of training."""

from collections.abc import Sequence

from torch import nn

from medcl_monai.distributed import bare
from medcl_monai.knobs import knob_types


class FrozenEncoder:
    """Freezes an encoder in the first epochs: the tensors do not change, and the norm layers stay in `eval`.

    Args:
        network: the network, plain or wrapped in DistributedDataParallel.
        prefixes: prefixes of tensor names; a tensor belongs to the encoder if its name begins with one of the prefixes.
        epochs: number of epochs, from the first epoch on, in which the encoder is frozen; 0: the encoder is never
            frozen.

    Raises:
        ValueError: `epochs` is negative, or no trained tensor has a name that begins with one of the prefixes.
    """

    @knob_types
    def __init__(self, network: nn.Module, prefixes: Sequence[str], epochs: int = 0) -> None:
        if epochs < 0:
            raise ValueError(f"FrozenEncoder: epochs must be 0 or more, got {epochs}")
        self.epochs, beginnings = epochs, tuple(prefixes)
        plain = bare(network)
        # DistributedDataParallel needs the gradient of every parameter in every step; a bare network does not
        self._may_drop_gradients = plain is network
        self._modules = [module for name, module in plain.named_modules() if f"{name}.".startswith(beginnings)]
        named = [parameter for name, parameter in plain.named_parameters() if name.startswith(beginnings)]
        self._parameters = [parameter for parameter in named if parameter.requires_grad]
        if epochs and not self._parameters:
            first = next(iter(plain.state_dict()), None)
            raise ValueError(f"freeze_encoder_epochs: no trained tensor begins with one of {beginnings}, as {first!r}")

    def holds(self, epoch: int) -> bool:
        """Return whether the encoder is frozen in this epoch, counted from 1."""
        return epoch <= self.epochs

    def set_modes(self, epoch: int) -> None:
        """Put a frozen encoder into `eval` and switch its gradients off; afterwards, switch the gradients on."""
        if self.holds(epoch):
            for module in self._modules:
                module.eval()
        if self.epochs and self._may_drop_gradients:
            for parameter in self._parameters:
                parameter.requires_grad_(not self.holds(epoch))

    def release(self) -> None:
        """Give back the gradients of the encoder's parameters, at the end of a run that may have ended while frozen."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)

    def drop_gradients(self, epoch: int) -> None:
        """Remove the gradients of a frozen encoder, so that the optimiser and the gradient clipping ignore them."""
        if self.holds(epoch):
            for parameter in self._parameters:
                parameter.grad = None

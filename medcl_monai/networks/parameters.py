"""Which parameters the optimiser moves, and how fast."""

from collections.abc import Sequence

from torch import nn

from medcl_monai.knobs import knob_types


@knob_types
def parameter_groups(
    network: nn.Module, learning_rate: float, encoder: Sequence[str] = (), encoder_lr_scale: float = 1.0
) -> list[dict[str, object]]:
    """Parameters for an optimiser: the encoder's with a scaled learning rate, then all others.

    Args:
        network: the segmenter, wrapped for several processes or not.
        learning_rate: of all but the encoder, 0 or more.
        encoder: prefixes of the names of the encoder's tensors; none: one group of all parameters.
        encoder_lr_scale: the encoder's learning rate as a multiple of it, 0 or more.

    Raises:
        ValueError: no parameter has such a name, or a number is negative.

    Example:
        >>> groups = parameter_groups(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), 1e-3, ["0."], 0.1)
        >>> [round(group["lr"], 6) for group in groups]
        [0.0001, 0.001]
    """
    if encoder_lr_scale < 0 or learning_rate < 0:
        raise ValueError(f"learning_rate {learning_rate} and encoder_lr_scale {encoder_lr_scale} must be 0 or more")
    if not encoder:
        return [{"params": list(network.parameters()), "lr": learning_rate}]
    named = {name.removeprefix("module."): parameter for name, parameter in network.named_parameters()}
    inside = {name for name in named if name.startswith(tuple(encoder))}
    if not inside:
        raise ValueError(f"no parameter of the network begins with one of {list(encoder)}, as {next(iter(named))!r}")
    return [
        {"params": [named[name] for name in named if name in inside], "lr": learning_rate * encoder_lr_scale},
        {"params": [named[name] for name in named if name not in inside], "lr": learning_rate},
    ]

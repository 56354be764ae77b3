"""Which parameters the optimiser moves, and how fast."""

from torch import nn

from medcl_monai.knobs import knob_types
from medcl_monai.transfer.load import Transfer


@knob_types
def parameter_groups(
    network: nn.Module, learning_rate: float, transfer: Transfer | None = None, carried_lr_scale: float = 1.0
) -> list[dict[str, object]]:
    """Parameters for an optimiser: the carried ones with a scaled learning rate, then all others.

    A network that starts from scratch carries nothing, so all of its parameters learn at one rate, whatever the scale.

    Args:
        network: the network, wrapped for several processes or not.
        learning_rate: of the parameters that no file gave, 0 or more.
        transfer: the report of `load_pretrained`, which names the carried tensors; None: nothing was carried.
        carried_lr_scale: the learning rate of the carried parameters as a multiple of `learning_rate`, 0 or more.

    Raises:
        ValueError: a number is negative, or the report names no parameter of this network.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> report = Transfer(carried=("0.weight", "0.bias"), reshaped=(), missing=(), unused=(), coverage=0.75)
        >>> [round(group["lr"], 6) for group in parameter_groups(network, 1e-3, report, carried_lr_scale=0.1)]
        [0.0001, 0.001]
        >>> [group["lr"] for group in parameter_groups(network, 1e-3, carried_lr_scale=0.1)]
        [0.001]
    """
    if carried_lr_scale < 0 or learning_rate < 0:
        raise ValueError(f"learning_rate {learning_rate} and carried_lr_scale {carried_lr_scale} must be 0 or more")
    named = {name.removeprefix("module."): parameter for name, parameter in network.named_parameters()}
    names = () if transfer is None else transfer.carried
    carried, fresh = [], []
    for name, parameter in named.items():
        (carried if name in names else fresh).append(parameter)
    if names and not carried:
        raise ValueError(
            f"parameter_groups: the transfer report is of another network: it carried {names[0]!r}, "
            f"this network has {next(iter(named))!r}"
        )
    groups = [
        {"params": carried, "lr": learning_rate * carried_lr_scale}, {"params": fresh, "lr": learning_rate},
    ]
    return [group for group in groups if group["params"]]

"""Which parameters the optimiser moves, and how fast."""

from torch import nn

from medcl_monai.knobs import knob_types
from medcl_monai.transfer.load import Transfer


@knob_types
def parameter_groups(
    network: nn.Module,
    learning_rate: float,
    transfer: Transfer | None = None,
    carried_lr_scale: float = 1.0,
    loss: nn.Module | None = None,
    decay_norms: bool = True,
) -> list[dict[str, object]]:
    """Parameters for an optimiser: the carried ones with a scaled learning rate, then all others, then the loss's own.

    A network that starts from scratch carries nothing, so all of its parameters learn at one rate, whatever the scale.

    Args:
        network: the network, wrapped for several processes or not.
        learning_rate: of the tensors that no file gave, after the warm-up; it falls to 0 at the last step. 0 or more.
        transfer: the report of `load_pretrained`, which names the carried tensors; None: nothing was carried.
        carried_lr_scale: the learning rate of the tensors that the file gave, as a multiple of `learning_rate`, 0 or
            more; from scratch there are none.
        loss: whose own parameters, as projectors, learn at `learning_rate` too; None: a loss without parameters.
        decay_norms: whether weight decay acts on norm layers and biases, which are parameters of one axis.

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
    carried = [parameter for name, parameter in named.items() if name in names]
    if names and not carried:
        raise ValueError(
            f"parameter_groups: the transfer report is of another network: it carried {names[0]!r}, "
            f"this network has {next(iter(named))!r}"
        )
    fresh = [parameter for name, parameter in named.items() if name not in names]
    own = [] if loss is None else list(loss.parameters())
    groups = [(carried, learning_rate * carried_lr_scale), (fresh, learning_rate), (own, learning_rate)]
    if decay_norms:
        return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]
    return [
        {"params": chosen, "lr": rate, **settings}
        for parameters, rate in groups
        for settings, chosen in (
            ({}, [p for p in parameters if p.ndim > 1]), ({"weight_decay": 0.0}, [p for p in parameters if p.ndim < 2])
        )
        if chosen
    ]

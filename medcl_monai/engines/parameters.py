"""The parameter groups of the optimiser, with their learning rates."""

from collections.abc import Callable

from torch import nn

from medcl_monai.knobs import knob_types
from medcl_monai.transfer.load import Transfer


@knob_types
def parameter_groups(
    network: nn.Module,
    learning_rate: float,
    transfer: Transfer | None = None,
    carried_lr_scale: float = 1.0,
    loss: Callable | None = None,
    decay_norms: bool = True,
) -> list[dict[str, object]]:
    """Group parameters for an optimiser: first the carried parameters, then all others, then the loss's parameters.

    A carried parameter is a parameter that the report of `load_pretrained` names as carried from a weights file; its
    learning rate is `learning_rate` times `carried_lr_scale`. A network that starts from scratch has no carried
    parameters, so all of its parameters have one learning rate, whatever the scale.

    Args:
        network: the network, plain or wrapped in DistributedDataParallel.
        learning_rate: learning rate of the tensors that were not loaded from a weights file, as reached after the
            warm-up, 0 or more; the rate then falls to 0 at the last step.
        transfer: report of `load_pretrained`, which names the carried tensors; None: no tensors were carried.
        carried_lr_scale: learning rate of the tensors that were loaded from a weights file, as a multiple of
            `learning_rate`, 0 or more; without effect in training from scratch.
        loss: loss whose own parameters, such as projectors, are trained at `learning_rate` too; None, or a loss that is
            no module: the loss has no parameters.
        decay_norms: whether weight decay acts on the parameters of norm layers and on biases, which are the parameters
            with one axis, and on the tables of relative positions of Swin networks.

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
    undecayed = {id(p) for name, p in named.items() if p.ndim < 2 or name.endswith("relative_position_bias_table")}
    carried = [parameter for name, parameter in named.items() if name in names]
    if names and not carried:
        raise ValueError(
            f"parameter_groups: the transfer report is of another network: it carried {names[0]!r}, "
            f"this network has {next(iter(named))!r}"
        )
    fresh = [parameter for name, parameter in named.items() if name not in names]
    of_loss = list(loss.parameters()) if isinstance(loss, nn.Module) else []
    undecayed |= {id(parameter) for parameter in of_loss if parameter.ndim < 2}
    groups = [(carried, learning_rate * carried_lr_scale), (fresh, learning_rate), (of_loss, learning_rate)]
    if decay_norms:
        return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]
    return [
        {"params": chosen, "lr": rate, **settings}
        for parameters, rate in groups
        for settings, chosen in (
            ({}, [p for p in parameters if id(p) not in undecayed]),
            ({"weight_decay": 0.0}, [p for p in parameters if id(p) in undecayed]),
        )
        if chosen
    ]

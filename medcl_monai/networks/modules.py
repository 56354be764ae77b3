"""Modules inside a network, by name."""

import difflib

from torch import nn


def module_named(network: nn.Module, name: str, asked_by: str) -> nn.Module:
    """Return the module of a network that has a name, such as ``down_1``.

    Raises:
        ValueError: the network has no such module; the error begins with `asked_by` and lists the nearest names.
    """
    modules = dict(network.named_modules())
    if name not in modules or not name:
        near = ", ".join(map(repr, difflib.get_close_matches(name, list(modules), n=4, cutoff=0.0)))
        raise ValueError(f"{asked_by}: the network has no module {name!r}; nearest: {near}")
    return modules[name]

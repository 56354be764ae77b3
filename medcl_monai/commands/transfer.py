"""The verb `transfer`: weights into a network given as JSON, with the report of every tensor."""

import json
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import nn

from medcl_monai.files import write_atomically
from medcl_monai.transfer.load import load_pretrained


def transfer(
    weights: str, network: str | dict, output: str | None = None, coverage: float = 0.5, net_id: str = "network_def"
) -> str:
    """Load weights into a network and say what became of every tensor.

    Args:
        weights: file of weights, such as models/pretrained.pt.
        network: a config file that defines the network under `net_id`, such as a bundle's inference.json, or the
            network's own JSON ({"_target_": "BasicUNet", …}).
        output: file that the network's whole state dict is written to; None: no file is written.
        coverage: least share of the network's elements that the file must give, 0 to 1.
        net_id: id of the network in the config file.

    Returns:
        The report as text.

    Raises:
        FileNotFoundError: no such weights or config.
        ValueError: the JSON is no network, or less than `coverage` would be carried.
    """
    target = build_network(network, net_id)
    report = load_pretrained(weights, target, coverage)
    lines = [f"{weights} into {type(target).__name__}: {report.listing()}"]
    if output is not None:
        write_atomically(Path(output), lambda path: torch.save(target.state_dict(), path))
        lines.append(f"written: {output}")
    return "\n".join(lines)


def build_network(network: str | dict, net_id: str = "network_def") -> nn.Module:
    """Build the network that a config file, a JSON text or a dict with `_target_` defines.

    Raises:
        FileNotFoundError: no such config file.
        ValueError: the JSON cannot be read or is no network.
    """
    parser = ConfigParser()
    if isinstance(network, str) and not network.lstrip().startswith("{"):
        if not Path(network).is_file():
            raise FileNotFoundError(f"{network}: no such config file, and not JSON with a _target_ either")
        parser.read_config(network)
    else:
        parser[net_id] = json.loads(network) if isinstance(network, str) else network
    if net_id not in parser.get():
        raise ValueError(f"{network} holds no {net_id!r}, but {list(parser.get())[:8]}")
    built = parser.get_parsed_content(net_id)
    if not isinstance(built, nn.Module):
        raise ValueError(f"{net_id} of {network} is no network, but {type(built).__name__}: does it hold a _target_?")
    return built

from dataclasses import replace

import pytest
import torch
from torch import nn

from medcl_monai.transfer.load import Transfer
from medcl_monai.transfer.output_layer import start_at_log_shares

NOTHING = Transfer((), (), (), (), 0.0)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_output_starts_at_the_shares(unet, dims):
    network, shares = unet(dims), torch.tensor([0.9, 0.08, 0.02])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    start_at_log_shares(network, "final_conv", shares, NOTHING)
    torch.testing.assert_close(network.final_conv.bias.softmax(0), shares)
    changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["final_conv.bias"]
    assert network.final_conv.bias.requires_grad


def test_the_layer_that_is_named_is_the_output():
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    first = network[0].bias.clone()
    start_at_log_shares(network, "1", torch.tensor([0.5, 0.3, 0.2]), NOTHING)
    assert torch.equal(network[0].bias, first)
    torch.testing.assert_close(network[1].bias, torch.tensor([0.5, 0.3, 0.2]).log())


def test_an_output_layer_that_was_carried_stays_as_it_is(unet):
    network = unet()
    before = network.final_conv.bias.clone()
    carried = Transfer(("final_conv.weight", "final_conv.bias"), (), (), (), 0.1)
    start_at_log_shares(network, "final_conv", torch.tensor([0.9, 0.08, 0.02]), carried)
    assert torch.equal(network.final_conv.bias, before)
    start_at_log_shares(network, "final_conv", torch.tensor([0.9, 0.08, 0.02]), replace(carried, copied=False))
    torch.testing.assert_close(network.final_conv.bias.softmax(0), torch.tensor([0.9, 0.08, 0.02]))


def test_shares_and_layers_that_do_not_fit_are_named(unet):
    with pytest.raises(ValueError, match=r"layer 'final_conv' is no output .* and 7 channels; these are: \[\]"):
        start_at_log_shares(unet(), "final_conv", torch.full((7,), 1 / 7), NOTHING)
    with pytest.raises(ValueError, match=r"layer 'head' is no output .* these are: \['final_conv'\]"):
        start_at_log_shares(unet(), "head", torch.full((3,), 1 / 3), NOTHING)
    with pytest.raises(ValueError, match="every class share must be above 0"):
        start_at_log_shares(unet(), "final_conv", torch.tensor([1.0, 0.0, 0.0]), NOTHING)

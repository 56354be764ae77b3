import pytest
import torch
from torch import nn

from medcl_monai.networks.heads import PooledHead, dense_head, start_at_log_shares
from medcl_monai.transfer.load import Transfer

NOTHING = Transfer((), (), (), (), 0.0)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("size", [(3, 3), (2, 3, 4)])
def test_the_pooled_head_reads_the_mean_of_the_map(size):
    head, x = PooledHead(8, 4), torch.randn(2, 8, *size)
    mean = x.mean(tuple(range(2, x.ndim)))
    assert head(x).shape == (2, 4)
    torch.testing.assert_close(head(x), head(mean[..., None, None]))


@pytest.mark.parametrize(("dims", "size"), [(2, (5, 6)), (3, (3, 4, 5))])
def test_the_dense_head_keeps_the_size(dims, size):
    assert dense_head(dims, 8, 4)(torch.randn(2, 8, *size)).shape == (2, 4, *size)


def test_the_heads_have_the_specified_numbers_of_parameters():
    assert parameters(PooledHead(128, 128)) == 33_024
    assert parameters(PooledHead(512, 128)) == 82_176
    assert parameters(dense_head(2, 512, 128)) == 738_048
    assert parameters(dense_head(3, 512, 128)) == 2_212_608
    assert [parameters(PooledHead(64, 128)), parameters(PooledHead(256, 128))] == [24_832, 49_408]
    assert parameters(dense_head(2, 256, 64)) == 184_704


@pytest.mark.parametrize("dims", [2, 3])
def test_the_output_starts_at_the_shares(unet, dims):
    network, shares = unet(dims), torch.tensor([0.9, 0.08, 0.02])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    start_at_log_shares(network, shares, NOTHING)
    torch.testing.assert_close(network.final_conv.bias.softmax(0), shares)
    changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["final_conv.bias"]
    assert network.final_conv.bias.requires_grad


def test_the_last_convolution_with_one_channel_per_class_is_the_output():
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1))
    first = network[0].bias.clone()
    start_at_log_shares(network, torch.tensor([0.5, 0.3, 0.2]), NOTHING)
    assert torch.equal(network[0].bias, first)
    torch.testing.assert_close(network[1].bias, torch.tensor([0.5, 0.3, 0.2]).log())


def test_an_output_layer_that_was_carried_stays_as_it_is(unet):
    network = unet()
    before = network.final_conv.bias.clone()
    carried = Transfer(("final_conv.weight", "final_conv.bias"), (), (), (), 0.1)
    start_at_log_shares(network, torch.tensor([0.9, 0.08, 0.02]), carried)
    assert torch.equal(network.final_conv.bias, before)


def test_shares_that_do_not_fit_are_named(unet):
    with pytest.raises(ValueError, match="no output convolution with 7 channels"):
        start_at_log_shares(unet(), torch.full((7,), 1 / 7), NOTHING)
    with pytest.raises(ValueError, match="every class share must be above 0"):
        start_at_log_shares(unet(), torch.tensor([1.0, 0.0, 0.0]), NOTHING)

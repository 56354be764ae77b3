import pytest
from torch import nn

from medcl_monai.engines.parameters import parameter_groups
from medcl_monai.networks.swin_unet import SwinUNet
from medcl_monai.transfer.load import Transfer


def report(*names):
    return Transfer(carried=names, reshaped=(), missing=(), unused=(), coverage=0.5)


def test_what_was_carried_learns_at_its_own_rate(unet):
    network = unet()
    carried = [name for name in network.state_dict() if name.startswith(("conv_0.", "down_"))]
    slow, full = parameter_groups(network, 0.01, report(*carried), 0.1)
    assert (slow["lr"], full["lr"]) == (0.001, 0.01)
    named = dict(network.named_parameters())
    assert {id(value) for value in slow["params"]} == {id(named[name]) for name in carried if name in named}
    assert len(slow["params"]) + len(full["params"]) == len(named)


@pytest.mark.parametrize("transfer", [None, report()])
def test_from_scratch_there_is_one_learning_rate_whatever_the_scale(unet, transfer):
    (group,) = parameter_groups(unet(), 0.01, transfer, carried_lr_scale=0.1)
    assert group["lr"] == 0.01


def test_a_network_that_was_carried_whole_has_one_rate_too(unet):
    network = unet()
    (group,) = parameter_groups(network, 0.01, report(*network.state_dict()), 0.1)
    assert group["lr"] == 0.001


def test_the_wrapper_for_several_processes_hides_no_name():
    wrapped = nn.ModuleDict({"module": nn.Linear(2, 2)})
    assert [len(group["params"]) for group in parameter_groups(wrapped, 0.01, report("weight"), 0.1)] == [1, 1]


def test_wrong_numbers_and_the_report_of_another_network_are_named(unet):
    with pytest.raises(ValueError, match=r"carried_lr_scale -1\.0 must be 0 or more"):
        parameter_groups(unet(), 0.01, None, -1.0)
    with pytest.raises(ValueError, match=r"it carried 'other\.weight', this network has 'conv_0"):
        parameter_groups(unet(), 0.01, report("other.weight"))


def test_norms_and_biases_may_be_left_out_of_the_decay_and_nothing_is_lost(unet):
    network, loss = unet(), nn.Linear(2, 2)
    carried = ("conv_0.conv_0.conv.weight", "conv_0.conv_0.conv.bias")
    groups = parameter_groups(network, 0.01, report(*carried), 0.1, loss, decay_norms=False)
    assert [len(group["params"]) for group in groups[:2]] == [1, 1]
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(given) == sorted(id(parameter) for parameter in [*network.parameters(), *loss.parameters()])
    for group in groups:
        still = group.get("weight_decay") == 0.0
        assert all((parameter.ndim < 2) == still for parameter in group["params"])


def test_tables_of_relative_positions_do_not_decay_either():
    network = SwinUNet(2, patch_size=2, embed_dim=8, window_size=2)
    decayed, still = parameter_groups(network, 0.01, decay_norms=False)
    named = {id(parameter): name for name, parameter in network.named_parameters()}
    assert still["weight_decay"] == 0.0
    tables = [name for name in named.values() if name.endswith("relative_position_bias_table")]
    assert len(tables) == 14
    assert set(tables) <= {named[id(parameter)] for parameter in still["params"]}
    assert all(named[id(parameter)].endswith(("weight", "kernel")) for parameter in decayed["params"])
    (group,) = parameter_groups(network, 0.01)
    assert "weight_decay" not in group


def test_a_loss_that_is_a_function_has_no_parameters(unet):
    (group,) = parameter_groups(unet(), 0.01, loss=lambda output, target: output.mean())
    assert group["lr"] == 0.01

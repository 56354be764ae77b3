import copy

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medcl_monai.inferers import FeatureTaps, SegmentationInferer, pad_with_minimum


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_2d_network_sees_each_slice_alone(axis):
    network, volume = nn.Conv2d(1, 3, 1), torch.randn(1, 1, 9, 10, 11)
    found = SegmentationInferer([16, 16], slice_axis=axis)(volume, network)
    expected = torch.stack([network(part) for part in volume.unbind(2 + axis)], 2 + axis)
    torch.testing.assert_close(found, expected)


def test_a_3d_network_slides_over_a_volume_larger_than_its_window():
    network, volume = nn.Conv3d(1, 2, 1), torch.randn(1, 1, 20, 16, 30)
    torch.testing.assert_close(SegmentationInferer([16, 16, 16], 3)(volume, network), network(volume))


def test_small_volumes_are_padded_with_their_own_minimum():
    volume = torch.rand(2, 1, 4, 4, 4) + torch.tensor([5.0, -3.0]).view(2, 1, 1, 1, 1)
    padded = pad_with_minimum(volume, (6, 4, 5))
    assert padded.shape == (2, 1, 6, 4, 5)
    assert torch.equal(padded[:, :, :4, :, :4], volume)
    assert torch.equal(padded[:, 0, 5, 0, 4], volume.flatten(1).amin(1))
    assert pad_with_minimum(volume, (2, 2, 2)) is volume
    assert isinstance(SegmentationInferer([8, 8])(MetaTensor(volume), nn.Conv2d(1, 1, 1)), MetaTensor)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="one entry per axis of a 2D network"):
        SegmentationInferer([8, 8, 8])
    with pytest.raises(ValueError, match="takes volumes"):
        SegmentationInferer([8, 8])(torch.zeros(1, 1, 8, 8), nn.Conv2d(1, 1, 1))


def test_a_region_that_the_network_cannot_take_is_named():
    with pytest.raises(ValueError, match=r"roi_size \(80, 96\): the network needs multiples of 32"):
        SegmentationInferer([80, 96], multiple=32)


def test_taps_give_the_prediction_and_each_map_and_leave_no_hook(unet):
    network, x = unet().train(), torch.randn(2, 1, 32, 32)
    expected = copy.deepcopy(network)(x)
    found = FeatureTaps({"down_1": [5], "upcat_3": [5]})(x, network)
    assert list(found) == ["pred", "down_1", "upcat_3"]
    assert list(FeatureTaps(name for name in ("down_1",))(x, copy.deepcopy(network))) == ["pred", "down_1"]
    assert torch.equal(found["pred"], expected)
    assert [tuple(found[name].shape) for name in ("down_1", "upcat_3")] == [(2, 32, 16, 16), (2, 64, 8, 8)]
    assert all(value.requires_grad for value in found.values())
    assert not [module for module in network.modules() if module._forward_hooks]


def test_one_taps_object_serves_two_networks_and_a_copy_without_mixing(unet):
    taps, x = FeatureTaps(["down_1"]), torch.randn(1, 1, 32, 32)
    first, second = unet().eval(), unet().eval()
    maps = [taps(x, network)["down_1"] for network in (first, second, first, copy.deepcopy(first))]
    assert torch.equal(maps[0], maps[2])
    assert torch.equal(maps[0], maps[3])
    assert not torch.equal(maps[0], maps[1])


def test_a_failing_network_leaves_no_hook(unet):
    network = unet()
    with pytest.raises(RuntimeError):
        FeatureTaps(["down_1"])(torch.zeros(1, 7, 32, 32), network)
    assert not [module for module in network.modules() if module._forward_hooks]


class Twice(nn.Module):
    """One module shared by two calls, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.shared, self.idle = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.shared(self.shared(x))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sharde"], r"no module 'sharde'; nearest: 'shared'"),
        (["shared"], "'shared' gave 2 outputs"),
        (["idle"], "'idle' gave no output in this forward pass"),
    ],
)
def test_a_tap_that_gives_no_single_map_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        FeatureTaps(names)(torch.zeros(1, 1, 4, 4), Twice())


def test_a_map_without_gradient_is_refused(unet):
    network, x = unet(), torch.zeros(1, 1, 32, 32)
    network.conv_0.register_forward_hook(lambda *values: values[2].detach())
    with pytest.raises(ValueError, match="the map of 'conv_0' has no gradient"):
        FeatureTaps(["conv_0"])(x, network)
    frozen = unet()
    frozen.conv_0.requires_grad_(False)
    assert not FeatureTaps(["conv_0"])(x, frozen)["conv_0"].requires_grad  # a frozen encoder is meant


@pytest.mark.parametrize("names", ["down_1", ["down_1", "pred"]])
def test_names_of_taps_are_a_list_without_the_prediction(names):
    with pytest.raises(ValueError, match="names must be a list of module names without 'pred'"):
        FeatureTaps(names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # read by torch.compile itself
def test_taps_of_a_compiled_network_are_those_of_the_network(unet):
    network, x = unet().train(), torch.randn(2, 1, 32, 32)
    compiled = torch.compile(copy.deepcopy(network), backend="eager")
    for _ in range(3):
        plain, fast = FeatureTaps(["down_1"])(x, network), FeatureTaps(["down_1"])(x, compiled)
        assert all(torch.equal(plain[name], fast[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_plain_call_of_a_compiled_network_makes_the_next_taps_fail_and_never_miss_in_silence(unet):
    torch._dynamo.reset()
    compiled, x = torch.compile(unet().train(), backend="eager"), torch.randn(2, 1, 32, 32)
    compiled(x)
    with pytest.raises(ValueError, match="'down_1' gave no output in this forward pass"):
        FeatureTaps(["down_1"])(x, compiled)

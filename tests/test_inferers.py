import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medcl_monai.inferers import SegmentationInferer, pad_with_minimum


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

import pytest
import torch

from medcl_monai.networks.encode import encode
from medcl_monai.networks.unet import decode, widths


@pytest.mark.parametrize(("dims", "size"), [(2, (48, 64)), (3, (32, 32, 48))])
def test_the_pieces_are_the_whole_network(unet, dims, size):
    network, x = unet(dims).eval(), torch.randn(1, 1, *size)
    maps = encode(network, x)
    assert torch.equal(network.final_conv(decode(network, maps)), network(x))
    assert decode(network, maps, 0) is maps[-1]
    for stages, width in enumerate(widths(network)):
        assert decode(network, maps, stages).shape[1] == width


def test_the_number_of_stages_is_checked(unet):
    network = unet()
    with pytest.raises(ValueError, match="stages must be 0 to 4, got 5"):
        decode(network, encode(network, torch.randn(2, 1, 32, 32)), 5)

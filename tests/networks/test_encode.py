import re

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import SwinUNETR
from torch import nn

from medcl_monai.networks.encode import decode, encode, encoder_parts, encoder_widths


def test_the_rest_of_the_network_makes_the_network_s_own_output_of_the_maps(case):
    network, image = case.network().eval(), case.image()
    found = case.backbone.finish(network, encode(network, image), image)
    torch.testing.assert_close(found, network(image), rtol=0, atol=0)


def test_widths_and_sizes_are_those_of_the_maps(case):
    network, image = case.network().eval(), case.image()
    sizes, size = [], torch.tensor(image.shape[2:])
    for stride in case.backbone.strides:
        size = size // stride
        sizes.append(tuple(size.tolist()))
    maps = encode(network, image)
    assert [tuple(x.shape[2:]) for x in maps] == sizes
    assert tuple(x.shape[1] for x in maps) == encoder_widths(network)


def test_the_parts_are_the_modules_that_the_maps_depend_on(case):
    network, image = case.network().eval(), case.image()
    sum(x.square().mean() for x in encode(network, image)).backward()
    reached = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    parts = {part: network.get_submodule(part) for part in encoder_parts(network)}
    assert reached == {f"{part}.{name}" for part in parts for name, _ in parts[part].named_parameters()}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("dims", "size"), [(2, (32, 64)), (3, (32, 32, 64))])
def test_the_hidden_states_leave_the_transformer_as_its_stages_compute_them(dims, size, normalize):
    network = SwinUNETR(
        1, 2, depths=[1] * 4, num_heads=[1] * 4, feature_size=12, spatial_dims=dims, normalize=normalize
    ).eval()
    swin, states = network.swinViT, []
    for stage in (swin.patch_embed, swin.layers1, swin.layers2, swin.layers3, swin.layers4):
        last = stage if stage is swin.patch_embed else stage[0]
        last.register_forward_hook(lambda module, inputs, state: states.append(state))
    image = torch.randn(1, 1, *size)
    network(image)
    plain = states[:]
    normalized = [F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1) for x in plain]
    torch.testing.assert_close(encode(network, image), normalized if normalize else plain, rtol=0, atol=0)
    torch.testing.assert_close(encode(swin, image), normalized, rtol=0, atol=0)


def test_an_unknown_backbone_is_told_which_there_are():
    known = "BasicUNet, DynUNet, FlexibleUNet, SegResNet, SwinTransformer, SwinUNETR, SwinUNet, UNet"
    stranger = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=f"^encode: no case for Linear; there are {known}$"):
        encode(stranger, torch.zeros(2, 2))
    for function in (encoder_widths, encoder_parts):
        with pytest.raises(TypeError, match=f"^{function.__name__}: no case for Linear; there are {known}$"):
            function(stranger)
    with pytest.raises(TypeError, match=re.escape("decode: no case for Linear; there are BasicUNet, FlexibleUNet")):
        decode(stranger, [])

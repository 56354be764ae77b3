import pytest
import torch
from torch import nn

from medcl_monai.networks.encode import decode, encode, encoder_widths
from medcl_monai.networks.swin_unet import PatchExpanding, SwinUNet, SwinUNet2D, SwinUNet3D


def small(dims=2, window=4, **knobs):
    knobs = {"patch_size": 2, "embed_dim": 24, "window_size": window, **knobs}
    return SwinUNet(dims, 1, 3, **knobs)


def count(*modules):
    return sum(value.numel() for module in modules for value in module.parameters())


@pytest.mark.parametrize(
    ("network", "side", "whole", "encoder", "coarsest"),
    [
        (lambda: SwinUNet2D(3, 9), 224, 27_168_900, 20_413_386, 7),
        (small, 64, 1_703_828, 1_284_534, 4),
        (lambda: small(3, 2), 32, 1_900_140, 1_382_082, 2),
    ],
    ids=["paper", "2D", "3D"],
)
def test_parameters_and_maps_are_those_of_the_paper_s_network(network, side, whole, encoder, coarsest):
    net = network().eval()
    head = net.out.bias.numel()  # the authors' head has no bias
    assert count(net) - head == whole
    assert count(net.swinViT, net.norm) == encoder
    dims, width = net.spatial_dims, encoder_widths(net)[0]
    with torch.no_grad():
        maps = encode(net, torch.rand(1, net.swinViT.patch_embed.proj.in_channels, *[side] * dims))
        shapes = [(x.shape[1] // width, x.shape[-1] // coarsest) for x in maps]
        assert shapes == [(1, 8), (2, 4), (4, 2), (8, 1), (8, 1)]
        up = [decode(net, maps, stages) for stages in range(4)]
    assert [(x.shape[1] // width, x.shape[-1] // coarsest) for x in up] == [(8, 1), (4, 2), (2, 4), (1, 8)]
    names = list(net.state_dict())
    assert len(names) == 233
    assert sum(name.startswith(("swinViT.", "norm.")) for name in names) == 127
    assert sum(name.endswith("relative_position_index") for name in names) == 14


def test_the_last_norm_belongs_to_the_encoder_and_nothing_is_normalised_before():
    net = small().eval()
    image = torch.rand(1, 1, 64, 64)
    maps, hidden = encode(net, image), net.swinViT(image, False)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps[:4], hidden[:4], strict=True))
    torch.testing.assert_close(maps[4].movedim(1, -1), net.norm(hidden[4].movedim(1, -1)))


def test_the_expanded_map_stands_before_the_skip_connection():
    """As the authors join them: the order belongs to the layout of the weights."""
    net = small(drop_path_rate=0.0).eval()
    maps = encode(net, torch.rand(1, 1, 64, 64))
    width = net.decoder.skip[0].out_features
    net.decoder.skip[0].weight.data[:, width:] = 0
    without = [*maps[:2], torch.zeros_like(maps[2]), *maps[3:]]
    assert torch.equal(decode(net, maps, 1), decode(net, without, 1))
    net.decoder.skip[0].weight.data[:, width:] = 1
    assert not torch.equal(decode(net, maps, 1), decode(net, without, 1))


def test_a_patch_becomes_a_block_of_pixels_in_the_order_of_the_axes():
    layer = PatchExpanding(2, 1, 1, 2)
    layer.norm = nn.Identity()
    layer.expand.weight.data = torch.arange(1.0, 5.0)[:, None]
    found = layer(torch.tensor([[[[1.0, 10.0]]]]))
    assert found.tolist() == [[[[1, 2, 10, 20], [3, 4, 30, 40]]]]
    deep = PatchExpanding(3, 1, 1, 2)
    deep.norm = nn.Identity()
    deep.expand.weight.data = torch.arange(8.0)[:, None]
    assert deep(torch.ones(1, 1, 1, 1, 1)).flatten().tolist() == list(range(8))


@pytest.mark.parametrize("side", [16, 32, 48, 96])
def test_every_multiple_of_eight_patches_is_taken(side):
    assert small()(torch.rand(1, 1, side, 64)).shape == (1, 3, side, 64)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"SwinUNet2D: side 56 of \(56, 64\) is not a multiple of 16 = 8 x patch_si"):
        SwinUNet2D(patch_size=2, embed_dim=24, window_size=4)(torch.rand(1, 1, 56, 64))
    with pytest.raises(ValueError, match="SwinUNet3D: embed_dim 97 must be a multiple of its 3 attention heads"):
        SwinUNet3D(embed_dim=97)
    with pytest.raises(ValueError, match=r"depths 4 numbers from 1.*got 2, \(2, 2\)"):
        SwinUNet2D(depths=(2, 2))
    with pytest.raises(ValueError, match="stages must be 0 to 3, got 4"):
        decode(small(), [], 4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_gives_the_same_output_for_any_batch():
    net = small(drop_path_rate=0.0).eval()
    traced = torch.jit.trace(net, torch.rand(1, 1, 64, 64), check_trace=False)
    image = torch.rand(3, 1, 64, 64)
    assert torch.equal(traced(image), net(image))


def test_torch_export_gives_the_same_output():
    net, image = small().eval(), torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(torch.export.export(net, (image,)).module()(image), net(image))

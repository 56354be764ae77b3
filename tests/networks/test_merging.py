import pytest
import torch
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import SwinTransformer

from medcl_monai.networks.merging import LegacyPatchMerging


def swin(**knobs):
    torch.manual_seed(0)
    return SwinTransformer(1, 12, (2, 2, 2), (2, 2, 2), (1, 1, 1, 1), (1, 2, 4, 8), **knobs)


def old_merging(layer, x):
    """The code of MONAI 1.3, written out: eight strided slices, two of them twice."""
    batch, depth, height, width, channels = x.shape
    cells = x.reshape(batch, depth // 2, 2, height // 2, 2, width // 2, 2, channels)
    corners = [cells[:, :, d, :, h, :, w] for d, h, w in [
        (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)]]
    return layer.reduction(layer.norm(torch.cat(corners, -1)))


def test_the_maps_are_those_of_the_old_order():
    network = swin(downsample=LegacyPatchMerging)
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.2)
    image = torch.randn(1, 1, 32, 32, 32)
    maps = network(image)
    found, merge = [], LegacyPatchMerging.forward
    try:
        LegacyPatchMerging.forward = old_merging
        found = network(image)
    finally:
        LegacyPatchMerging.forward = merge
    for ours, theirs in zip(maps, found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_present_order_gives_other_maps_of_the_same_weights():
    old, new = swin(downsample=LegacyPatchMerging).eval(), swin().eval()
    new.load_state_dict({name: v for name, v in old.state_dict().items() if not name.endswith("legacy_order")})
    image = torch.randn(1, 1, 32, 32, 32)
    for ours, theirs in zip(old(image)[1:], new(image)[1:], strict=True):
        assert float((ours - theirs).detach().norm() / ours.detach().norm()) > 0.2


def test_strict_loading_refuses_weights_of_the_other_order():
    old, new = swin(downsample=LegacyPatchMerging), swin()
    with pytest.raises(RuntimeError, match="legacy_order"):
        new.load_state_dict(old.state_dict())
    with pytest.raises(RuntimeError, match="legacy_order"):
        old.load_state_dict(new.state_dict())


def test_swin_unetr_takes_the_class_from_a_config():
    from monai.bundle import ConfigParser

    parser = ConfigParser({"network_def": {
        "_target_": "SwinUNETR", "in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8],
        "downsample": {"_target_": "medcl_monai.networks.merging.LegacyPatchMerging", "_mode_": "callable"},
    }})
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, SwinUNETR)
    assert isinstance(network.swinViT.layers1[0].downsample, LegacyPatchMerging)


def test_slices_are_refused():
    with pytest.raises(ValueError, match="for 3 spatial axes, got 2"):
        LegacyPatchMerging(8, spatial_dims=2)

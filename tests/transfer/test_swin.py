import json
import os
import re
import sys
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import SwinTransformer

from medcl_monai.networks.encode import encode
from medcl_monai.networks.merging import LegacyPatchMerging
from medcl_monai.networks.swin_unet import SwinUNet, SwinUNet2D, SwinUNet3D
from medcl_monai.transfer.inflate import inflate
from medcl_monai.transfer.load import load_pretrained
from medcl_monai.transfer.swin import DEVIATION, MEAN, convert_swin, mirror_decoder, resize_table

sys.path.insert(0, str(Path(__file__).parent))
import reference_swin as reference

HEADS, SIDE = (1, 2, 4, 8), 128  # the smallest side that windows of 4 tile behind patches of 4
SMALL = {"patch_size": 2, "embed_dim": 24, "window_size": 4}
LAYOUTS = {"Microsoft": dict, "timm": reference.as_timm, "torchvision": reference.as_torchvision}


def layouts_folder():
    place = os.environ.get("MEDCL_MONAI_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data"
    return Path(place) / "weight_layouts"


@pytest.fixture(scope="module")
def weights():
    return reference.random_weights(2, 32, 4, 4, (2, 2, 2, 2), HEADS)


def network(channels=1, patch=4):
    return SwinUNet2D(channels, 3, patch_size=patch, embed_dim=32, window_size=4, drop_path_rate=0.0).eval()


def loaded(net, weights, tmp_path, **knobs):
    torch.save(weights, tmp_path / "weights.pt")
    return load_pretrained(tmp_path / "weights.pt", net, 0.0, layout=partial(convert_swin, **knobs))


def same(ours, theirs, tolerance=1e-4):
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).norm() / other.norm()) < tolerance


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_features_are_those_of_an_independent_forward_pass(weights, layout, tmp_path):
    net, image = network(3), torch.rand(1, 3, SIDE, SIDE)
    report = loaded(net, LAYOUTS[layout](weights), tmp_path)
    assert len(report.carried) == 119
    assert not report.reshaped
    assert not report.unused
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    same(encode(net, image), reference.maps(weights, (image - mean) / deviation, HEADS), 1e-5)


@torch.no_grad()
def test_grey_images_are_read_as_three_equal_colours_with_imagenet_s_mean_folded_in(weights, tmp_path):
    net, image = network(1), torch.rand(1, 1, SIDE, SIDE)
    loaded(net, weights, tmp_path)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    same(encode(net, image), reference.maps(weights, (image - mean) / deviation, HEADS), 1e-5)
    loaded(net, weights, tmp_path, inputs="z-score")
    image = torch.randn(1, 1, SIDE, SIDE)
    same(encode(net, image), reference.maps(weights, image.expand(-1, 3, -1, -1), HEADS), 1e-5)


@torch.no_grad()
def test_a_smaller_patch_is_the_network_on_the_enlarged_image(weights, tmp_path):
    small, large, image = network(1, 2), network(1, 4), torch.rand(1, 1, 64, 64)
    loaded(small, weights, tmp_path)
    loaded(large, weights, tmp_path)
    doubled = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
    same(encode(small, image), encode(large, doubled), 1e-5)


@torch.no_grad()
def test_blocks_that_the_network_lacks_are_reported_as_unused(tmp_path):
    weights = reference.random_weights(2, 32, 4, 4, (2, 2, 6, 2), HEADS)
    report = loaded(network(), weights, tmp_path)
    assert len(report.carried) == 119
    assert len(report.unused) == 52
    assert all(name.startswith("swinViT.layers3.0.blocks.") for name in report.unused)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["as_swinvit", "as_ssl"])
def test_the_self_supervised_files_of_swin_unetr_are_exact_in_the_legacy_order(layout, tmp_path):
    heads = (1, 2, 2, 4)
    weights = reference.random_weights(3, 12, 2, 2, (2, 2, 2, 2), heads, 1, 4, patch_norm=False)
    knobs = {"feature_size": 12, "num_heads": heads, "window_size": 2}
    net = SwinUNETR(1, 2, **knobs, downsample=LegacyPatchMerging).eval()
    report = loaded(net, getattr(reference, layout)(weights), tmp_path)
    assert len(report.carried) == 118  # all names of the transformer but the 8 indices
    assert not report.unused
    image = torch.rand(1, 1, 32, 32, 32)
    plain = {**weights, "norm.weight": torch.zeros(0)}
    same(net.swinViT(image, normalize=False), reference.maps(plain, image, heads, reference.OLD), 1e-5)
    new = SwinUNETR(1, 2, **knobs).eval()
    with pytest.raises(ValueError, match=r'"downsample": \{"_target_": "medcl_monai.LegacyPatchMerging"'):
        loaded(new, getattr(reference, layout)(weights), tmp_path)
    loaded(new, getattr(reference, layout)(weights), tmp_path, merging="present")
    same(new.swinViT(image, normalize=False), reference.maps(plain, image, heads, reference.NEW), 1e-5)
    with pytest.raises(ValueError, match="trained in the present order of merging, the network has the other"):
        loaded(net, getattr(reference, layout)(weights), tmp_path, merging="present")


def test_own_3d_weights_need_no_word_on_the_order_and_fit_their_own_order_only(tmp_path):
    knobs = {"feature_size": 12, "num_heads": (1, 1, 1, 1), "window_size": 2, "depths": (1, 1, 1, 1)}
    present, legacy = SwinUNETR(1, 2, **knobs), SwinUNETR(1, 2, **knobs, downsample=LegacyPatchMerging)
    ours = {name: value for name, value in present.state_dict().items() if not name.endswith("index")}
    assert loaded(present, ours, tmp_path).coverage > 0.9
    with pytest.raises(ValueError, match="trained in the present order of merging, the network has the other: leave"):
        loaded(legacy, ours, tmp_path)
    assert loaded(legacy, legacy.state_dict(), tmp_path).coverage > 0.9
    with pytest.raises(ValueError, match=r"trained in the legacy order of merging, .* write \"downsample\""):
        loaded(present, legacy.state_dict(), tmp_path)
    with pytest.raises(ValueError, match=r"probably trained with MONAI up to 1\.4"):
        loaded(present, present.state_dict(), tmp_path)  # as the files of other projects are named
    whole = SwinUNet3D(1, 2, 2, 12, window_size=2)
    assert loaded(whole, whole.state_dict(), tmp_path).coverage > 0.9


@pytest.mark.parametrize(
    ("layout", "prefix", "dropped"),
    [
        (dict, "base_encoder.", "momentum_encoder.layers.0.downsample.norm.weight"),
        (dict, "encoder.", "encoder_k.layers.0.downsample.norm.weight"),
        (dict, "module.", "queue"),
    ],
)
def test_prefixes_of_pre_training_are_opened_and_copies_left_out(weights, layout, prefix, dropped, tmp_path):
    wrapped = {f"{prefix}{name}": value for name, value in layout(weights).items()} | {dropped: torch.zeros(1)}
    report = loaded(network(), wrapped, tmp_path)
    assert len(report.carried) == 119
    assert not report.unused


@cache
def shapes_of(build):
    return {name: value.shape for name, value in build().state_dict().items()}


def swin_tiny():
    return SwinUNet2D(3, 2)


def public_swin_unetr():
    return SwinUNETR(1, 14, feature_size=48, downsample=LegacyPatchMerging)


@pytest.mark.parametrize(
    ("file", "build", "carried"),
    [
        ("timm_swin_tiny", swin_tiny, 119),
        ("torchvision_swin_t", swin_tiny, 119),
        ("swinunetr_model_swinvit", public_swin_unetr, 118),
        ("swinunetr_ssl_pretrained_weights", public_swin_unetr, 149),
        ("swinunetr_btcv_supervised", public_swin_unetr, 151),
        ("suprem_swinunetr", public_swin_unetr, 149),
    ],
)
def test_the_names_and_shapes_of_the_public_files_are_taken(file, build, carried):
    place = layouts_folder() / f"{file}.json"
    if not place.is_file():
        pytest.skip("the lists of names and shapes are not here: set MEDCL_MONAI_TEST_DATA to the folder above them")
    content = json.loads(place.read_text(encoding="utf-8"))
    shapes = next(value for value in content.values() if isinstance(value, dict))
    own, weights = (
        {name: torch.empty(shape, device="meta") for name, shape in part.items()} for part in (shapes_of(build), shapes)
    )
    found = convert_swin(weights, own)
    fitting = [name for name, value in found.items() if name in own and own[name].shape == value.shape]
    assert len(fitting) == carried


def test_what_does_not_fit_is_named(weights, tmp_path):
    wide = reference.random_weights(2, 64, 4, 4, (1, 1, 1, 1), HEADS)
    with pytest.raises(ValueError, match=re.escape(
        "patch_embed.proj.weight is (64, 3, 4, 4), the network has (32, 1, 4, 4): embed_dim 64 was expected to be 32"
    )):
        loaded(network(), wide, tmp_path)
    unknown = {"a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"unknown layout; the first names are \['a', 'b'\]; the known layouts are"):
        loaded(network(), unknown, tmp_path)
    with pytest.raises(ValueError, match="patch_size 8 must divide the file's patch of 4"):
        loaded(network(1, 8), weights, tmp_path)
    message = r"window 4 does not tile the stage grids 24, 12, 6, 3 of side 96, .* multiples of 128, or another window"
    with pytest.raises(ValueError, match=message):
        loaded(network(), weights, tmp_path, size=(128, 96))
    loaded(network(), weights, tmp_path, size=(128, 128))
    with pytest.raises(ValueError, match=r"reads 3D images, the network 2D images"):
        loaded(network(), reference.random_weights(3, 32, 4, 4, (1, 1, 1, 1), HEADS), tmp_path)
    with pytest.raises(ValueError, match=r"inputs must be one of \('unit', 'z-score'\)"):
        loaded(network(), weights, tmp_path, inputs="grey")
    with pytest.raises(ValueError, match=r"mirror_decoder: the network has no decoder.layers_up"):
        mirror_decoder({}, {"out.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"the network reads 2D images, got a size of \(128, 128, 128\)"):
        loaded(network(), weights, tmp_path, size=(128, 128, 128))


def test_weights_that_fit_in_shape_but_compute_something_else_are_refused(weights, tmp_path):
    second = {**weights, "layers.0.blocks.0.attn.logit_scale": torch.zeros(1, 1, 1)}
    with pytest.raises(ValueError, match=r"the file has 'layers.0.blocks.0.attn.logit_scale', so it is of Swin V2"):
        loaded(network(), second, tmp_path)
    heads = reference.random_weights(2, 32, 4, 4, (2, 2, 2, 2), (2, 4, 8, 16))
    with pytest.raises(ValueError, match=r"relative_position_bias_table is of 2 attention heads, the network has 1"):
        loaded(network(), heads, tmp_path)
    bare = {name: value for name, value in weights.items() if not name.startswith("patch_embed.norm")}
    with pytest.raises(ValueError, match=r"the network has a norm behind the patches .*, the file has none"):
        loaded(network(), bare, tmp_path)
    without = SwinUNETR(1, 2, feature_size=24, window_size=4, num_heads=(1, 2, 4, 8), spatial_dims=2)
    with_norm = SwinUNETR(1, 2, feature_size=24, window_size=4, num_heads=(1, 2, 4, 8), patch_norm=True, spatial_dims=2)
    with pytest.raises(ValueError, match=r"the file has a norm .*, the network has none: .* with patch_norm=True"):
        loaded(without, with_norm.state_dict(), tmp_path)
    loaded(with_norm, with_norm.state_dict(), tmp_path)


def test_files_in_half_precision_are_folded_in_full_precision(weights, tmp_path):
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    full = {name: value.float() if value.is_floating_point() else value for name, value in half.items()}
    first, second = network(), network()
    loaded(first, half, tmp_path)
    loaded(second, full, tmp_path)
    for name, value in first.swinViT.state_dict().items():
        assert torch.equal(value, second.swinViT.state_dict()[name]), name


def test_tables_of_another_window_are_left_out_or_resized_and_said(weights, tmp_path):
    net = SwinUNet2D(1, 3, patch_size=4, embed_dim=32, window_size=2)
    assert len(loaded(net, weights, tmp_path).reshaped) == 8
    report = loaded(net, weights, tmp_path, resize_tables=True)
    assert report.reshaped == ()
    assert len(report.resized) == 8
    assert "8 resized" in str(report)
    assert "resized: swinViT.layers1.0.blocks.0.attn.relative_position_bias_table" in report.listing()
    ramp = torch.linspace(-3, 3, 7)
    table = (ramp[:, None] * 10 + ramp).reshape(49, 1)
    wanted = torch.linspace(-3, 3, 3)
    corners = resize_table(table, 9, 2).reshape(3, 3)[::2, ::2]
    torch.testing.assert_close(corners, (wanted[:, None] * 10 + wanted)[::2, ::2])
    torch.testing.assert_close(resize_table(table, 49, 2), table)


def test_the_mirror_fills_the_decoder_s_blocks_with_copies_and_only_where_the_file_has_none(tmp_path):
    source = SwinUNet2D(**SMALL)
    own = source.state_dict()
    shared = {name: value for name, value in own.items() if name.startswith(("swinViT.", "norm."))}
    shared = {name: value for name, value in shared.items() if not name.endswith("index")}
    mirrored = mirror_decoder(shared, own)
    added = {name: value for name, value in mirrored.items() if name not in shared}
    assert len(added) == 78
    assert sum(value.numel() for value in added.values()) / sum(
        value.numel() for name, value in own.items() if name.startswith("decoder.") and not name.endswith("index")
    ) == pytest.approx(0.69, abs=0.05)
    for name, value in added.items():
        stage, rest = int(name.split(".")[2]), name.split(".", 3)[3]
        origin = shared[f"swinViT.layers{3 - stage}.0.{rest}"]
        assert torch.equal(value, origin)
        assert value.data_ptr() != origin.data_ptr()
    name = "decoder.layers_up.0.blocks.0.norm1.weight"
    kept = mirror_decoder({**shared, name: torch.full((96,), 7.0)}, own)
    assert torch.equal(kept[name], torch.full((96,), 7.0))


def test_mirrored_blocks_go_their_own_way_after_one_step(tmp_path):
    net = SwinUNet2D(**SMALL)
    shared = {name: value for name, value in net.state_dict().items() if name.startswith(("swinViT.", "norm."))}
    torch.save(shared, tmp_path / "weights.pt")
    load_pretrained(tmp_path / "weights.pt", net, 0.5, layout=[convert_swin, mirror_decoder])
    encoder, decoder = net.swinViT.layers3[0].blocks[0].mlp.linear1, net.decoder.layers_up[0].blocks[0].mlp.linear1
    assert torch.equal(encoder.weight, decoder.weight)
    net(torch.rand(2, 1, 64, 64)).square().mean().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    assert not torch.equal(encoder.weight, decoder.weight)


@torch.no_grad()
def test_a_volume_that_is_constant_along_depth_gives_the_maps_and_the_output_of_the_2d_network():
    flat, deep = (build(1, 3, **SMALL, drop_path_rate=0.0).eval() for build in (SwinUNet2D, SwinUNet3D))
    for value in flat.parameters():
        torch.nn.init.normal_(value, std=0.1 if value.ndim != 2 or len(value) != 49 else 2.0)  # 49: the tables
    found = inflate(flat.state_dict(), deep.state_dict())
    deep.load_state_dict({name: v for name, v in found.items() if not name.endswith("index")}, strict=False)
    image = torch.rand(1, 1, 64, 64)
    volume = image[:, :, None].expand(-1, -1, 64, -1, -1)
    for plane, block in zip([*encode(flat, image), flat(image)], [*encode(deep, volume), deep(volume)], strict=True):
        same([block], [plane[:, :, None].expand_as(block)], 1e-5)
    volume, image = volume[..., :32, :32, :32], image[..., :32, :32]  # windows of 4 do not tile the last grid of 2
    plane, block = encode(flat, image)[-1], encode(deep, volume)[-1]
    assert float((block - plane[:, :, None]).norm() / block.norm()) > 1e-3


def test_2d_weights_reach_a_3d_network_through_the_importer(weights, tmp_path):
    net = SwinUNet3D(1, 3, patch_size=4, embed_dim=32, window_size=4)
    assert len(loaded(net, weights, tmp_path).carried) == 119
    legacy = SwinTransformer(
        1, 32, (4, 4, 4), (4, 4, 4), (2, 2, 2, 2), HEADS, patch_norm=True, downsample=LegacyPatchMerging
    )
    with pytest.raises(ValueError, match="the legacy order of merging joins two corners twice"):
        loaded(legacy, weights, tmp_path)


def test_a_plain_transformer_and_swin_unetr_take_the_shared_weights(tmp_path):
    source = SwinUNet(2, 1, 3, **SMALL)
    shared = {name: value for name, value in source.state_dict().items()
              if name.startswith(("swinViT.", "norm.")) and not name.endswith("index")}
    plain = SwinTransformer(1, 24, (4, 4), (2, 2), (2,) * 4, HEADS, patch_norm=True, spatial_dims=2)
    report = loaded(plain, shared, tmp_path)
    assert all("layers4.0.downsample" in name or name.endswith("index") for name in report.missing)
    unetr = SwinUNETR(1, 3, feature_size=24, window_size=4, num_heads=HEADS, patch_norm=True, spatial_dims=2)
    report = loaded(unetr, shared, tmp_path)
    assert len(report.carried) == 117
    assert report.unused == ("norm.weight", "norm.bias")
    image = torch.rand(1, 1, 64, 64)
    for ours, theirs in zip(unetr.swinViT(image, False)[:4], source.eval().swinViT(image, False)[:4], strict=True):
        assert torch.equal(ours, theirs)

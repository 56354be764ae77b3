"""Regression against contrast: structure, routing, hand-over and views."""

import pytest
import torch
from monai.networks.nets import BasicUNet

from medcl_monai.methods.base import names_beginning_with
from medcl_monai.methods.regression_vs_contrastive import (
    VIEWS,
    RegressionContrast,
    RegressionContrastLoss,
    RegressionContrastViews,
)
from medcl_monai.networks.encode import decode, encode
from medcl_monai.networks.unet import DECODER, ENCODER
from medcl_monai.transfer.load import load_pretrained
from medcl_monai.transforms.views import apply_warp

GROUP = ("group", {"num_groups": 4})
ARMS = {
    "restoration": {"contrast": False}, "contrast": {"restoration": False}, "joint": {},
    "second stage": {"contrast": False, "freeze_encoder": True},
}


def unet(dims=2, classes=3, features=(16, 32, 64, 128, 128, 16), norm=GROUP):
    return BasicUNet(dims, 1, classes, features=features, act=("relu", {"inplace": True}), norm=norm)


def small(dims=2, **knobs):
    return RegressionContrast(unet(dims, features=(4, 8, 8, 8, 8, 4)), projector_width=16, projection_dim=8, **knobs)


def batch(size=(32, 32), count=8):
    subject = torch.arange(count) // 4
    return {"image": torch.randn(count, 1, *size), "position": (torch.arange(count) % 4 + 0.5).double() / 4,
            "subject": subject}


def weights(arm):
    return {
        "restoration": {"contrast_weight": 0.0}, "contrast": {"restoration_weight": 0.0},
        "second stage": {"contrast_weight": 0.0},
    }.get(arm, {})


def test_parameters_are_counted():
    network = RegressionContrast(unet())
    assert sum(p.numel() for p in network.backbone.parameters()) == 1_185_475
    encoder = [p for name, p in network.backbone.named_parameters() if name.startswith(ENCODER)]
    assert sum(p.numel() for p in encoder) == 589_872
    assert sum(p.numel() for p in network.projector.parameters()) == 655_360
    assert sum(p.numel() for p in unet(3).parameters()) == 3_470_819


@pytest.mark.parametrize(("dims", "size"), [(2, (64, 64)), (2, (17, 33)), (2, (35, 50)), (3, (32, 32, 32))])
def test_shapes(dims, size):
    network = small(dims)
    views, _ = RegressionContrastViews(4, 3)(batch(size, 4))
    output = network(views)
    assert output["restored"].shape == (4, 1, *size)
    assert all(output[name].shape == (4, 8) for name in VIEWS)
    assert output["features"].shape == (4, 8)
    assert not output["features"].requires_grad


def test_the_decoder_s_last_map_gives_the_segmenter_s_output_bit_for_bit():
    network, x = unet().eval(), torch.randn(2, 1, 32, 32)
    assert torch.equal(network.final_conv(decode(network, encode(network, x))), network(x))


def test_one_pass_of_all_views_equals_a_pass_of_each():
    network = small()
    views, _ = RegressionContrastViews(4, 3)(batch())
    output = network(views)
    for name in VIEWS:
        alone = network.projector(network._pool(encode(network.backbone, views[name])[-1]))
        torch.testing.assert_close(output[name], alone)


def test_a_view_of_a_branch_that_is_off_is_not_read():
    views, target = RegressionContrastViews(4, 3)(batch())
    clean = {name: views[name] for name in VIEWS}
    assert set(small(restoration=False)(clean)) == {*VIEWS, "features"}
    output = small(contrast=False)({"corrupted": views["corrupted"]})
    assert set(output) == {"restored", "features"}
    assert set(RegressionContrastLoss(contrast_weight=0.0)(output, target)) == {"restoration"}


@pytest.mark.parametrize("arm", ARMS)
def test_each_term_reaches_its_parts_and_three_steps_move_the_trained_parts_alone(arm):
    torch.manual_seed(0)
    network, loss, made = small(**ARMS[arm]), RegressionContrastLoss(**weights(arm)), RegressionContrastViews(4, 3)
    views, target = made(batch())
    for term, value in loss(network(views), target).items():
        parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=True)
        reached = {name for name, gradient in zip(parameters, found, strict=True) if gradient is not None}
        encoder = () if network.freeze_encoder else ENCODER
        wanted = {"contrast": encoder, "restoration": encoder + DECODER}[term]
        heads = {"contrast": "projector.", "restoration": "restorer."}[term]
        expected = {f"backbone.{name}" for name, _ in network.backbone.named_parameters() if name.startswith(wanted)}
        assert reached == expected | {name for name in parameters if name.startswith(heads)}
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        sum(loss(network(views), target).values()).backward()
        optimizer.step()
    moved = {name for name, value in network.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(network.trained_parts())


@pytest.mark.parametrize(("arm", "count", "share"), [
    ("contrast", 40, 0.4976), ("restoration", 80, 0.99996), ("joint", 80, 0.99996), ("second stage", 80, 0.99996),
])
def test_the_file_holds_what_was_trained_and_the_rest_starts_as_from_scratch(arm, count, share, tmp_path):
    network = RegressionContrast(unet(classes=2), **ARMS[arm])
    state = network.backbone.state_dict()
    torch.save({name: state[name] for name in network.shared_parts()}, tmp_path / "pretrained.pt")
    assert len(network.trained_parts()) == (40 if arm == "second stage" else count)
    torch.manual_seed(5)
    scratch = unet()
    torch.manual_seed(5)
    tuned = unet()
    report = load_pretrained(tmp_path / "pretrained.pt", tuned, 0.45)
    assert len(report.carried) == count
    assert len(tuned.state_dict()) == 82
    assert report.coverage == pytest.approx(share, abs=5e-5)
    decoder = names_beginning_with(tuned, DECODER)
    assert set(report.missing) == {"final_conv.weight", "final_conv.bias", *(decoder if arm == "contrast" else ())}
    assert all(torch.equal(tuned.state_dict()[name], scratch.state_dict()[name]) for name in report.missing)


def test_the_encoder_alone_can_be_carried_from_a_restoration(tmp_path):
    network = RegressionContrast(unet(), contrast=False)
    state = network.backbone.state_dict()
    torch.save({name: state[name] for name in network.shared_parts()}, tmp_path / "pretrained.pt")
    report = load_pretrained(tmp_path / "pretrained.pt", unet(), 0.45, keep=["conv_0.", "down_"])
    assert len(report.carried) == 40


def test_the_first_view_is_the_sample_and_the_crops_are_what_their_warps_say():
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 48)
    smooth = (torch.sin(2 * x)[:, None] + torch.cos(3 * x)[None]).expand(4, 1, 48, 48)
    known = {"position": torch.rand(4).double(), "subject": torch.arange(4)}
    views, target = RegressionContrastViews(6, 4, contrast=0.0, shift=0.0)({"image": smooth, **known})
    assert torch.equal(views["view_1"], smooth)
    assert torch.equal(target["image"], smooth)
    assert torch.equal((views["corrupted"] != smooth), target["changed"])
    grid = torch.cartesian_prod(x[4:-4:5], x[4:-4:5]) * 47 / 48  # centres of pixels
    for number in (1, 2, 3):
        warp = target[f"warp_{number}"]
        corners = apply_warp(warp, torch.tensor([[[-1.0, -1], [1, 1], [-1, 1], [1, -1]]]).expand(4, -1, -1))
        assert bool((corners.abs() <= 1 + 1e-6).all())
        seen = apply_warp(warp, grid.expand(4, -1, -1))
        expected = torch.sin(2 * seen[..., 1] * 48 / 47) + torch.cos(3 * seen[..., 0] * 48 / 47)
        found = torch.nn.functional.grid_sample(
            views[f"view_{number}"], grid.expand(4, 1, -1, 2), align_corners=False
        )[:, 0, 0]
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    assert not torch.equal(target["warp_2"], target["warp_3"])
    varied, _ = RegressionContrastViews(6, 4)({"image": smooth, **known})
    assert torch.equal(varied["view_1"], smooth)
    assert not torch.allclose(varied["view_2"].mean((1, 2, 3)), varied["view_3"].mean((1, 2, 3)))


def test_masking_fills_blocks_and_no_corruption_changes_nothing():
    views, target = RegressionContrastViews(8, swaps=0, mask_ratio=0.5)(batch())
    assert float(target["changed"].double().mean()) == 0.5
    assert bool((views["corrupted"][target["changed"]] == 0).all())
    views, target = RegressionContrastViews(8, swaps=0)(batch())
    assert torch.equal(views["corrupted"], target["image"])


@pytest.mark.parametrize(("knobs", "message"), [
    ({"restoration": False, "contrast": False}, "are both off"),
    ({"pool_size": 0}, "must be at least 1"),
    ({"freeze_encoder": True}, "set contrast_weight to 0"),
])
def test_impossible_networks_are_named(knobs, message):
    with pytest.raises(ValueError, match=message):
        small(**knobs)
    with pytest.raises(ValueError, match="the backbone has batch norm, which would mix views"):
        RegressionContrast(unet(norm="batch"))


def test_small_images_and_two_weights_of_zero_are_named():
    views, _ = RegressionContrastViews(4, 1)(batch((15, 64)))
    message = r"RegressionContrast: size \(15, 64\): each side must be at least 16, the backbone halves four times"
    for knobs in ({}, {"restoration": False}):
        with pytest.raises(ValueError, match=message):
            small(**knobs)(views)
    with pytest.raises(ValueError, match="are both 0"):
        RegressionContrastLoss(0.0, 0.0)
    with pytest.raises(ValueError, match="shift -1"):
        RegressionContrastViews(shift=-1.0)


def test_the_backbone_can_be_scripted():
    torch.jit.script(small().backbone)


@pytest.mark.slow
def test_restoration_beats_the_identity_and_neighbours_lie_in_the_same_slab(example_samples):
    """After 100 steps: the gain is at least 30 %, the contrast is below that of equal embeddings, slabs are found."""
    import math

    data, loader = example_samples
    torch.manual_seed(0)
    network, loss, made = RegressionContrast(unet()), RegressionContrastLoss(), RegressionContrastViews()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-4)
    gains, contrasts = [], []
    for _, samples in zip(range(100), loader, strict=False):
        views, target = made(samples)
        output = network(views)
        terms = loss(output, target)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        identity = loss({**output, "restored": views["corrupted"]}, target)["restoration"]
        gains.append(1 - float(terms["restoration"].detach() / identity.detach()))
        contrasts.append(float(terms["contrast"].detach()) / 0.1)
    assert sum(gains[-10:]) / 10 > 0.3
    assert sum(contrasts[-10:]) / 10 < math.log(1 + 36)
    held = [data[item] for item in range(0, len(data), 5)]
    with torch.no_grad():
        images = torch.stack([one["image"] for one in held])
        features = network(dict.fromkeys(("corrupted", *VIEWS), images))[VIEWS[0]]
    unit = torch.nn.functional.normalize(features, dim=1)
    subject = torch.stack([one["subject"] for one in held])
    slab = torch.stack([(one["position"] * 4).long() for one in held])
    near = (unit @ unit.T).masked_fill(subject[:, None] == subject, -2).argmax(1)
    assert float((slab[near] == slab).double().mean()) > 0.4  # chance is about 0.25


@pytest.fixture
def example_samples(population, preprocessing, tmp_path):
    from medcl_monai import SlabSampler, SliceDataset, sample_loader, split_dataset

    entries = split_dataset(population).pretraining
    data = SliceDataset(entries, preprocessing("image"), (64, 64), cache_dir=tmp_path)
    sampler = SlabSampler(data.positions, data.subjects, 4, 16)
    return data, sample_loader(data, 16, sampler=sampler)

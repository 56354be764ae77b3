import logging
import shutil
import socket
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.bundle import create_workflow
from monai.networks.nets import FlexibleUNet, resnet10
from monai.networks.nets.resnet import ResNetFeatures
from torch import nn

from medcl_monai.methods.decorrelated_moco import (
    DecorrelatedMoCo,
    DecorrelatedMoCoLoss,
    DecorrelatedMoCoViews,
    read_level,
)
from medcl_monai.networks.encode import decode, encode
from medcl_monai.networks.whitening import WhitenZCA
from medcl_monai.transfer.layouts import residual_encoder
from medcl_monai.transfer.load import load_pretrained
from medcl_monai.transforms.crop_views import CropViews
from medcl_monai.transforms.regions import Regions, sample_regions

SMALL = {"queue_size": 16, "key_splits": 2, "momentum": 0.9, "local_level": "layer2"}


def backbone(classes=4, dims=2, name="resnet10"):
    return FlexibleUNet(1, classes, name, spatial_dims=dims)


def network(dims=2, group_size=4, **knobs):
    torch.manual_seed(0)
    whiten = knobs.pop("whiten", WhitenZCA(512, group_size))
    return DecorrelatedMoCo(backbone(dims=dims), whiten, **{**SMALL, **knobs})


def made(samples=8, size=(64, 64), view=None):
    batch = {
        "image": torch.rand(samples, 1, *size), "position": torch.rand(samples).double(),
        "subject": torch.arange(samples),
    }
    return DecorrelatedMoCoViews(CropViews(view or size))(batch)


def reached(module):
    return {name for name, p in module.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}


@pytest.mark.parametrize(("dims", "level"), [(2, "layer3"), (2, "decoder2"), (3, "layer2")])
def test_the_shapes_are_those_of_the_specification(dims, level):
    size = (64,) * dims if dims == 2 else (48,) * 3
    net = network(dims, local_level=level)
    views, target = made(4, size)
    output = net(views)
    side = {"layer3": 4, "decoder2": 8, "layer2": 6}[level]
    shapes = {name: tuple(value.shape) for name, value in output.items()}
    assert shapes["query"] == shapes["key"] == (4, 128)
    assert shapes["queue"] == (16, 128)
    assert shapes["features"] == shapes["whitened"] == (4, 512)
    assert shapes["local_query"] == shapes["local_key"] == (4, 128, *(side,) * dims)
    torch.testing.assert_close(output["query"].norm(dim=1), torch.ones(4))
    assert set(DecorrelatedMoCoLoss()(output, target)) == {"global", "local"}


def test_the_last_map_is_white_before_the_average():
    net, (views, _) = network(), made(8)
    seen = []
    net.whiten.register_forward_hook(lambda module, inputs, white: seen.append((inputs[0], white)))
    output = net(views)
    raw, white = seen[0]
    assert raw.shape == white.shape == (8, 512, 2, 2)
    group = torch.cov(white.movedim(1, 0).flatten(1)[:4], correction=0)
    assert (group - torch.diag(group.diagonal())).abs().max().item() < 1e-2
    torch.testing.assert_close(output["whitened"], white.flatten(2).mean(2))
    torch.testing.assert_close(output["features"], raw.flatten(2).mean(2))


def test_each_term_reaches_exactly_its_parts():
    for term, level in (("global", "layer2"), ("local", "layer2")):
        net, (views, target) = network(local_level=level), made()
        DecorrelatedMoCoLoss()(net(views), target)[term].backward()
        found = {name.split(".")[0] + "." + name.split(".")[1] for name in reached(net.backbone)}
        local = {"encoder.conv1", "encoder.bn1", "encoder.layer1", "encoder.layer2"}
        assert found == (local if term == "local" else {*local, "encoder.layer3", "encoder.layer4"})
        assert bool(reached(net.projector)) == (term == "global")
        assert bool(reached(net.local_head)) == (term == "local")
        assert reached(net.key_network) == set()


def test_forward_changes_neither_queue_nor_copy_and_update_changes_both():
    net, (views, _) = network(), made()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    outputs = [net(views), net(views)]
    after = net.state_dict()
    statistics = ("running_mean", "running_var", "running_covariance", "num_batches_tracked")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(statistics) for name in changed)
    with torch.no_grad():
        net.projector[0].weight.add_(1.0)
    net.update(outputs)
    assert int(net.queue.pointer) == 0  # sixteen keys fill it
    assert int(net.queue.filled) == 16
    assert torch.equal(net.queue.features, torch.cat([output["key"] for output in outputs]))
    assert net.queue.subject.tolist() == [*range(8), *range(8)]
    moved = net.key_network["projector"][0].weight - before["key_network.copies.projector.0.weight"]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1))


def test_keys_of_chunks_differ_from_keys_of_the_batch_and_a_shuffle_alone_changes_nothing():
    net, (views, _) = network(key_splits=1), made(8)
    torch.manual_seed(1)
    whole = net(views)["key"]
    torch.manual_seed(2)
    again = net(views)["key"]
    torch.testing.assert_close(again, whole, atol=1e-4, rtol=0)
    net.key_splits = 4
    chunks = net(views)["key"]
    assert float((chunks - whole).abs().max()) > 1e-2
    net.eval()  # statistics are the running ones: what is left of the chunks is their order
    cut = net(views)["key"]
    net.key_splits = 1
    torch.testing.assert_close(cut, net(views)["key"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("level", ["layer2", "decoder2"])
def test_what_three_steps_move_is_what_is_shared(level):
    net = network(local_level=level)
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        views, target = made()
        optimizer.zero_grad()
        output = net(views)
        sum(DecorrelatedMoCoLoss()(output, target).values()).backward()
        optimizer.step()
        net.update([output])
    moved = {name for name, value in net.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(net.trained_parts())
    assert len(net.trained_parts()) == (72 if level == "layer2" else 100)
    assert all(name.startswith(("encoder.", "decoder.blocks.0.", "decoder.blocks.1.")) for name in moved)


def test_levels_are_read_and_decoded_as_the_backbone_itself_does():
    assert [read_level(name) for name in ("layer1", "layer4", "decoder5")] == [(1, 0), (4, 0), (4, 5)]
    with pytest.raises(ValueError, match="got 'layer5'"):
        read_level("layer5")
    net, image = backbone().eval(), torch.randn(1, 1, 64, 64)
    assert torch.equal(net.segmentation_head(decode(net, encode(net, image))), net(image))
    with pytest.raises(ValueError, match="stages must be 0 to 5, got 6"):
        decode(net, encode(net, image), 6)


@pytest.mark.parametrize(
    ("knobs", "size", "said"),
    [
        ({"local_level": "decoder2"}, (48,) * 3, r"\(48, 48, 48\) is not a multiple of 32.*decoder2.*\(64, 64, 64\)"),
        ({}, (32, 32), r"\(32, 32\) leaves 1 position in layer4; each side must be at least 33"),
        ({"key_splits": 3}, (64, 64), "batch of 4 is not divisible by key_splits=3"),
        ({"group_size": 64}, (64, 64), r"WhitenZCA: 16 samples \(4 x 2 x 2 positions\) cannot whiten groups of 64"),
    ],
)
def test_what_does_not_fit_is_named(knobs, size, said):
    net = network(len(size), **knobs)
    views = {name: torch.rand(4, 1, *size) for name in ("view_1", "view_2")}
    with pytest.raises(ValueError, match=said):
        net({**views, "subject": torch.arange(4), "position": torch.rand(4)})


def test_knobs_out_of_range_are_named_and_severed_encoders_warned_of(caplog):
    with pytest.raises(ValueError, match="key_splits 0, projection_dim 128"):
        network(key_splits=0)
    with pytest.raises(ValueError, match=r"contrast 5\.0 and blur 0\.0 0 to 1"):
        CropViews((64, 64), contrast=5.0)
    with pytest.raises(ValueError, match="group_size 60 must divide the 512 channels"):
        network(group_size=60)
    with caplog.at_level(logging.WARNING):
        DecorrelatedMoCo(backbone(name="resnet18"), "none", **SMALL)
    assert "resnet18: MONAI's shortcuts" in caplog.text
    with pytest.raises(ValueError, match=r"min_distance 1\.0 and weight -1\.0 must be 0 or more"):
        DecorrelatedMoCoLoss(local_weight=-1.0)
    with pytest.raises(ValueError, match="whiten is of 256 channels, the encoder gives 512"):
        network(whiten=WhitenZCA(256, 4))


def test_terms_of_weight_0_are_left_out_and_the_covariance_term_is_an_option():
    net, (views, target) = network(local_level="none"), made()
    output = net(views)
    assert "local_query" not in output
    assert set(DecorrelatedMoCoLoss(local_weight=0.0)(output, target)) == {"global"}
    terms = DecorrelatedMoCoLoss(local_weight=0.0, covariance_weight=0.1)(output, target)
    assert set(terms) == {"global", "covariance"}
    terms["covariance"].backward()
    assert reached(net.backbone)


def test_a_switched_off_local_term_has_no_head_and_shares_no_decoder():
    net = network(local=False, local_level="decoder2")
    assert net.local_head is None
    assert not [name for name in net.shared_parts() if name.startswith("decoder")]
    assert "local_head" not in net.key_network.copies


def test_a_loss_with_a_local_term_names_the_missing_head():
    net, (views, target) = network(local_level="none"), made()
    with pytest.raises(ValueError, match="the network gives no 'local_query': give the network a local_level"):
        DecorrelatedMoCoLoss()(net(views), target)


def test_views_refuse_intensities_that_they_would_cut_off():
    batch = {"image": torch.randn(4, 1, 32, 32), "position": torch.rand(4), "subject": torch.arange(4)}
    with pytest.raises(ValueError, match=r"intensities from 0 to 1 are expected, got -.*'scale': 'unit'"):
        CropViews((32, 32))(batch)


def test_regions_are_drawn_in_tissue():
    torch.manual_seed(0)
    image = torch.zeros(4, 1, 64, 64)
    image[:, :, :, 32:] = 0.5
    views = DecorrelatedMoCoViews(CropViews((64, 64), area_range=(0.9, 1.0), shift=0.0, noise=0.0), 20)
    _, target = views({"image": image, "position": torch.rand(4), "subject": torch.arange(4)})
    shown = sample_regions(target["foreground_1"], target["regions"].points_1)[..., 0]
    assert bool((shown[target["regions"].valid] > 0.5).all())
    assert float(shown.mean()) > 0.7


def test_ready_regions_are_taken():
    net, (views, target) = network(), made()
    output = net(views)
    points = torch.zeros(8, 1, 2)
    target["regions"] = Regions(points, points, torch.ones(8, 1, dtype=torch.bool))
    assert DecorrelatedMoCoLoss()(output, target)["local"].item() == pytest.approx(0, abs=1e-6)


def test_views_are_seeded_inside_their_range_and_know_where_there_is_tissue():
    batch = {"image": torch.zeros(4, 1, 32, 32), "position": torch.rand(4), "subject": torch.arange(4)}
    batch["image"][:, :, 8:24, 8:24] = 0.5
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(DecorrelatedMoCoViews(CropViews((48, 40), blur=0.5), 6)(batch))
    (views, target), (again, _) = found
    assert torch.equal(views["view_1"], again["view_1"])
    assert views["view_1"].shape == target["foreground_1"].shape == (4, 1, 48, 40)
    assert not torch.equal(views["view_1"], views["view_2"])
    assert 0.05 < float(target["foreground_1"].mean()) < 0.95
    assert target["warp_1"].shape == (4, 2, 3)
    assert target["regions"].points_1.shape == (4, 6, 2)
    assert all(torch.equal(*pair) for pair in zip(target["regions"], found[1][1]["regions"], strict=True))


def test_weights_loaded_into_the_backbone_reach_the_copy_and_a_checkpoint_keeps_its_own():
    net = network()
    weights = {name: value + 1 for name, value in net.backbone.state_dict().items() if name.startswith("encoder.")}
    net.backbone.load_state_dict(weights, strict=False)
    name = "layer1.0.conv1.weight"
    assert torch.equal(net.key_network["encoder"].state_dict()[name], weights[f"encoder.{name}"])
    state = net.state_dict()
    state["key_network.copies.encoder.layer1.0.conv1.weight"] = torch.full_like(weights[f"encoder.{name}"], 7.0)
    other = network()
    other.load_state_dict(state)
    assert other.key_network["encoder"].state_dict()[name].eq(7).all()


def test_the_shared_weights_are_those_of_plain_monai_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)  # nothing is downloaded
    net = network()
    shared = {name: net.backbone.state_dict()[name] for name in net.shared_parts()}
    torch.save(shared, tmp_path / "pretrained.pt")
    plain = backbone(classes=6)
    report = load_pretrained(tmp_path / "pretrained.pt", plain, 0.6)
    assert len(report.carried) == 72
    assert report.coverage == pytest.approx(0.66, abs=0.01)
    assert not report.unused
    assert all(name.startswith(("decoder.", "segmentation_head.")) for name in report.missing)
    bare = {name.removeprefix("encoder."): value for name, value in shared.items()}
    ResNetFeatures("resnet10", pretrained=False, spatial_dims=2, in_channels=1).load_state_dict(bare)
    resnet10(
        spatial_dims=2, n_input_channels=1, conv1_t_stride=2, feed_forward=False, bias_downsample=False,
        shortcut_type="B",
    ).load_state_dict(bare)


def test_a_colour_network_starts_the_encoder_and_sees_grey_as_three_equal_channels(tmp_path):
    colour = ResNetFeatures("resnet10", pretrained=False, spatial_dims=2, in_channels=3).eval()
    weights = {**colour.state_dict(), "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    torch.save(weights, tmp_path / "colour.pt")
    grey = backbone()
    report = load_pretrained(tmp_path / "colour.pt", grey, 0.6, layout=residual_encoder)
    assert len(report.carried) == 72
    image = torch.randn(2, 1, 64, 64)
    ours, theirs = encode(grey.eval(), image)[-1], colour(image.expand(-1, 3, -1, -1))[-1]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.save(ResNetFeatures("resnet18", False, 2, 3).state_dict(), tmp_path / "deeper.pt")
    with pytest.raises(ValueError, match=r"another encoder: 102 tensors, 72 are expected.*'encoder.layer1.1"):
        load_pretrained(tmp_path / "deeper.pt", grey, layout=residual_encoder)
    own = {name: value for name, value in grey.state_dict().items() if name.startswith("encoder.")}
    assert residual_encoder(own, grey.state_dict()).keys() == own.keys()


def test_a_network_of_double_precision_stays_one():
    net, (views, _) = network().double(), made()
    output = net({name: view.double() for name, view in views.items()})
    assert output["query"].dtype == output["whitened"].dtype == torch.float64
    with pytest.raises(ValueError, match="view_1 holds 8 samples, view_2 6"):
        net({**views, "view_2": views["view_2"][:6]})


def test_a_checkpoint_of_another_queue_size_is_named():
    from medcl_monai.engines.state import _check

    state = {"network": network().state_dict(), "iteration": 0, "optimizer": {}, "handlers": {}}
    with pytest.raises(ValueError, match=r"tensor 'queue.features' is \(16, 128\) there, \(32, 128\) is expected"):
        _check(Path("checkpoint_1.pt"), state, network(queue_size=32).state_dict())


def test_export_of_the_segmenter_scripts():
    scripted = torch.jit.script(backbone().eval())
    assert scripted(torch.zeros(1, 1, 64, 64)).shape == (1, 4, 64, 64)


def test_without_whitening_the_map_is_averaged_as_it_is():
    net, (views, _) = network(whiten="none"), made()
    output = net(views)
    assert isinstance(net.whiten, nn.Identity)
    torch.testing.assert_close(output["whitened"], output["features"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_whitening_ends_the_small_profile_at_a_lower_global_loss(tmp_path):
    """The bundle's own run on the example population: mean of the last 25 of 200 steps."""
    bundle = Path(__file__).parents[2] / "bundles" / "decorrelated_moco"
    ends = {}
    for whiten in (True, False):
        root = tmp_path / str(whiten) / bundle.name
        shutil.copytree(bundle, root, ignore=shutil.ignore_patterns("eval", "models"))
        workflow = create_workflow(
            config_file=str(root / "configs" / "pretrain.json"), workflow_type="train", logging_file=False,
            bundle_root=str(root), **({} if whiten else {"network_def::whiten": "none"}),
        )
        trainer, losses = workflow.parser.get_parsed_content("train::trainer"), []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine, losses=losses: losses.append(float(engine.state.output[0]["terms"]["global"])),
        )
        workflow.run()
        ends[whiten] = sum(losses[-25:]) / 25
    assert ends[True] < ends[False]

import contextlib
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.networks.nets import BasicUNet, DynUNet, SegResNet, SwinUNETR, UNet
from torch import nn

from medcl_monai import (
    JCL,
    Checkpoints,
    CollapseMonitor,
    FeatureTaps,
    FrozenEncoder,
    LabelBoxes,
    PDCRFigures,
    PDCRLoss,
    SegmentationLoss,
    SliceDataset,
    TotalLoss,
    Trainer,
    affinity,
    balanced_pdcr,
    insert_uafs,
    label_shares,
    load_pretrained,
    parameter_groups,
    pdcr,
    sample_loader,
    split_dataset,
)
from medcl_monai.handlers.collapse import terms_of_equal_embeddings
from medcl_monai.handlers.pdcr_figures import foreground_background_cosine
from medcl_monai.losses.pdcr import cell_embeddings
from medcl_monai.methods.pdcr_uafs import centred

CLASSES, SIDES = 3, [5, 7, 9]
GROUP = ("group", {"num_groups": 4})
SITES = [f"upcat_{k}.convs" for k in (4, 3, 2, 1)]


def segmentation():
    return SegmentationLoss(torch.full((CLASSES,), 1 / CLASSES))


def unet(dims=2, sites=(), features=(8, 8, 16, 16, 16, 8)):
    network = BasicUNet(dims, 1, CLASSES, features=features, norm=GROUP, act=("relu", {"inplace": True}))
    return insert_uafs(network, sites)


def loss(taps=("down_1", "down_2"), number=16, centre=0.5, **settings):
    boxes = LabelBoxes(dict.fromkeys(taps, SIDES), CLASSES, number, centre=centre)
    return PDCRLoss(segmentation(), boxes, **settings)


class FlatCrossEntropy(nn.Module):
    """A segmentation loss that returns a scalar."""

    def forward(self, prediction, label):
        return nn.functional.cross_entropy(prediction, label[:, 0].long())


class NoSegmentation(nn.Module):
    """A segmentation loss that reads no label."""

    def forward(self, prediction, label):
        return {"none": prediction.sum() * 0}


@pytest.fixture
def batch():
    image = torch.randn(4, 1, 32, 48)
    label = torch.zeros(4, 1, 32, 48)
    label[:, :, 4:14, 20:40], label[:, :, 20:28, 4:12] = 1, 2
    return image, label


def test_terms_stand_beside_those_of_the_segmentation_and_are_the_pair_losses(batch):
    image, label = batch
    network = unet()
    output = FeatureTaps(["down_1", "down_2"])(image, network)
    measured = loss(intra_weight=0.1, cross_weight=0.2, cross_channels={"down_1": 8, "down_2": 16})
    terms = measured(output, label)
    assert list(terms) == ["dice", "cross_entropy", "intra", "cross"]
    assert measured.contrasts == ("intra", "cross")
    cells = measured.boxes(label, {name: output[name].shape[2:] for name in ("down_1", "down_2")})
    z = {name: output[name].flatten(2).gather(2, cells[name].index[:, None].expand(-1, output[name].shape[1], -1)).mT
         for name in cells}
    alone = [pdcr(z[name], z[name], affinity(part.shares, part.shares), 0.5) for name, part in cells.items()]
    torch.testing.assert_close(terms["intra"], 0.1 * sum(alone) / 2)
    first, second = (layer(z[name]) for name, layer in zip(cells, measured.projectors, strict=True))
    crossed = pdcr(first, second, affinity(cells["down_1"].shares, cells["down_2"].shares), 0.5)
    torch.testing.assert_close(terms["cross"], 0.2 * crossed)


def test_temperature_validity_and_every_map_count_in_the_mean(batch):
    image, label = batch
    label[:, :, :, :14] = 255
    taps = ["down_1", "down_2", "upcat_3"]
    output = FeatureTaps(taps)(image, unet())
    measured = PDCRLoss(NoSegmentation(), LabelBoxes({key: [5, 9] for key in taps}, CLASSES, 16), 1.0, temperature=0.3)
    cells = measured.boxes(label, {name: output[name].shape[2:] for name in taps})
    assert not all(bool(part.valid.all()) for part in cells.values())
    alone = []
    for name, part in cells.items():
        z = cell_embeddings(output[name], part.index)
        alone.append(pdcr(z, z, affinity(part.shares, part.shares), 0.3, part.valid, part.valid))
    torch.testing.assert_close(measured(output, label)["intra"], sum(alone) / 3)


def test_a_projection_of_cells_is_a_convolution_before_the_sampling(batch):
    image, label = batch
    output = FeatureTaps(["down_1", "down_2"])(image, unet())
    measured = loss(intra_weight=0.0, cross_weight=1.0, cross_channels={"down_1": 8, "down_2": 16}, projection_dim=4)
    convolved = {
        name: nn.functional.conv2d(output[name], layer.weight[..., None, None])
        for name, layer in zip(measured.crossed, measured.projectors, strict=True)
    }
    cells = measured.boxes(label, {name: value.shape[2:] for name, value in convolved.items()})
    places = {name: cells[name].index[:, None].expand(-1, 4, -1) for name in convolved}
    z = [value.flatten(2).gather(2, places[name]).mT for name, value in convolved.items()]
    expected = pdcr(*z, affinity(*(cells[name].shares for name in convolved)), 0.5)
    torch.testing.assert_close(measured(output, label)["cross"], expected)


def test_each_term_reaches_its_parts_and_no_other(batch):
    image, label = batch
    network = unet(sites=SITES)
    for parameter in (block.gate for name, block in network.named_modules() if name.endswith(".uafs")):
        nn.init.ones_(parameter)
    measured = loss(intra_weight=1.0, cross_weight=1.0, cross_channels={"down_1": 8, "down_2": 16})

    def reached(term):
        network.zero_grad()
        measured.zero_grad()
        measured(FeatureTaps(["down_1", "down_2"])(image, network), label)[term].backward()
        named = [*network.named_parameters(), *measured.named_parameters()]
        return {name.split(".")[0] for name, p in named if p.grad is not None and float(p.grad.abs().sum()) > 0}

    encoder = {"conv_0", "down_1", "down_2"}
    assert reached("intra") == encoder
    assert reached("cross") == encoder | {"projectors"}
    assert reached("dice") == {name for name, _ in network.named_children()}


def test_a_weight_of_zero_returns_no_term_and_asks_for_no_boxes(batch):
    image, label = batch
    plain = loss(intra_weight=0.0)
    plain.boxes = None
    assert list(plain(FeatureTaps(["down_1"])(image, unet()), label)) == ["dice", "cross_entropy"]
    assert plain.contrasts == ()
    scalar = PDCRLoss(nn.CrossEntropyLoss(), LabelBoxes({"down_1": [5]}, CLASSES), intra_weight=0.0)
    assert list(scalar({"pred": torch.randn(4, CLASSES, 32, 48)}, label[:, 0].long())) == ["segmentation"]


def test_both_parts_off_train_as_the_plain_network_does(batch):
    image, label = batch
    results = []
    for network, inferer, measured in (
        (unet(sites=[]), FeatureTaps(["down_1", "down_2"]), loss(intra_weight=0.0)),
        (unet(), lambda x, net: net(x), segmentation()),
    ):
        torch.manual_seed(1)
        for layer in network.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        optimizer = torch.optim.AdamW(network.parameters(), 0.01)
        for _ in range(5):
            optimizer.zero_grad()
            sum(measured(inferer(image, network), label).values()).backward()
            optimizer.step()
        results.append(network.state_dict())
    assert list(results[0]) == list(results[1])
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_in_three_steps_every_tensor_moves(batch):
    image, label = batch
    network = unet(sites=SITES)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        sum(loss()(FeatureTaps(["down_1", "down_2"])(image, network), label).values()).backward()
        optimizer.step()
    assert [name for name, value in network.state_dict().items() if torch.equal(value, before[name])] == []


NETWORKS = [  # builder, taps, centre
    (partial(unet, sites=["upcat_1.convs"]), ["down_1", "upcat_3"], 0.5),
    (lambda dims: UNet(dims, 1, CLASSES, (8, 16, 32, 64), (2, 2, 2), num_res_units=2),
     ["model.0", "model.1.submodule.0"], 0.0),
    (lambda dims: DynUNet(dims, 1, CLASSES, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[8, 16, 32, 64]),
     ["downsamples.0", "upsamples.1"], 0.0),
    (lambda dims: SegResNet(dims, 8, 1, CLASSES), ["down_layers.1", "up_layers.1"], 0.0),
    (lambda dims: SwinUNETR(1, CLASSES, depths=(1, 1, 1, 1), feature_size=12, spatial_dims=dims),
     ["encoder2", "decoder3"], 0.5),
]


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("build", "taps", "centre"), NETWORKS, ids=["basic", "unet", "dynunet", "segres", "swin"])
def test_every_network_trains_with_taps_in_single_and_half_precision(build, taps, centre, dims):
    network = build(dims)
    image = torch.randn(2, 1, *[64] * dims)
    label = (torch.nn.functional.avg_pool2d(image, 9, 1, 4) if dims == 2 else image).gt(0.1).float()
    measured, values = loss(taps, centre=centre, intra_weight=0.1), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = FeatureTaps(taps)(image, network)
            terms = measured(output, label)
        values.append(float(terms["intra"].detach()))
        assert terms["intra"].dtype == torch.float32
        sum(terms.values()).backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None)
    assert values[1] == pytest.approx(values[0], rel=0.05)


def test_deep_supervision_reaches_a_segmentation_loss_that_takes_the_stack(batch):
    image, label = batch
    network = DynUNet(
        2, 1, CLASSES, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[8, 16, 32, 64], deep_supervision=True, deep_supr_num=2
    )

    class Stacked(FlatCrossEntropy):
        def forward(self, prediction, label):
            return sum(super(Stacked, self).forward(part, label) for part in prediction.unbind(1))

    measured = PDCRLoss(Stacked(), LabelBoxes({"downsamples.0": SIDES}, CLASSES, centre=0.0))
    terms = measured(FeatureTaps(["downsamples.0"])(image, network.train()), label)
    assert list(terms) == ["segmentation", "intra"]
    sum(terms.values()).backward()


def test_equal_embeddings_give_log_n_in_the_published_form_and_zero_in_the_balanced(batch):
    image, label = batch
    output = FeatureTaps(["down_1", "down_2"])(image, unet())
    published = terms_of_equal_embeddings(loss(intra_weight=0.1), output, label)
    assert float(published["intra"]) == pytest.approx(0.1 * math.log(16), rel=1e-5)
    balanced = terms_of_equal_embeddings(loss(intra_weight=0.1, pair_loss=balanced_pdcr), output, label)
    assert float(balanced["intra"]) == pytest.approx(0, abs=1e-6)


def test_centred_embeddings_lose_the_mean_of_the_valid_cells_of_each_image(batch):
    k = torch.arange(60, dtype=torch.float64)
    z = torch.sin(1 + 0.7 * k + 0.013 * k * k).reshape(2, 6, 5)
    shares = torch.tensor(
        [[1, 0, 0], [0.75, 0.25, 0], [0.5, 0.25, 0.25], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]], dtype=torch.float64
    ).expand(2, 6, 3)
    counted = torch.ones(2, 6, dtype=torch.bool)
    middle = centred(z, counted)
    assert float(pdcr(middle, middle, affinity(shares, shares))) == pytest.approx(1.508918093, abs=1e-9)
    image, label = batch
    label[:, :, :, :14] = 255
    output = {name: value.detach() for name, value in FeatureTaps(["down_1", "down_2"])(image, unet()).items()}
    moved = {name: value.clone() for name, value in output.items()}
    moved["down_1"][..., :3] += 9  # the boxes of these cells hold no label
    measured = PDCRLoss(
        NoSegmentation(), LabelBoxes({"down_1": [5], "down_2": [5]}, CLASSES, 64), centre_embeddings=True
    )
    torch.testing.assert_close(measured(output, label)["intra"], measured(moved, label)["intra"])


def test_accumulation_gives_the_gradient_of_the_whole_batch(batch):
    image, label = (part.double() for part in batch)
    network = unet(sites=SITES).double()
    measured = PDCRLoss(FlatCrossEntropy(), LabelBoxes({"down_1": SIDES, "down_2": SIDES}, CLASSES, 16), 0.5)

    def gradient(parts):
        network.zero_grad()
        for x, y in parts:
            terms = measured(FeatureTaps(["down_1", "down_2"])(x, network), y)
            (sum(terms.values()) / len(parts)).backward()
        return [parameter.grad.clone() for parameter in network.parameters()]

    halves = list(zip(image.split(2), label.split(2), strict=True))
    for whole, summed in zip(gradient([(image, label)]), gradient(halves), strict=True):
        torch.testing.assert_close(summed, whole, atol=1e-14, rtol=1e-10)


def test_a_killed_training_resumes_with_its_projectors_bit_for_bit(batch, tmp_path):
    image, label = batch

    def run(folder, steps, **knobs):
        torch.manual_seed(0)
        network = unet(sites=SITES)
        boxes = LabelBoxes({"down_1": SIDES, "down_2": SIDES}, CLASSES, 16, foreground_share=0.5)
        measured = PDCRLoss(segmentation(), boxes, 0.1, 0.1, {"down_1": 8, "down_2": 16})
        engine = Trainer(
            device="cpu", max_epochs=1, epoch_length=6, train_data_loader=[{"image": image, "label": label}] * 6,
            network=network, optimizer=torch.optim.AdamW(parameter_groups(network, 0.01, loss=measured)),
            loss_function=measured, inferer=FeatureTaps(measured.watched),
            train_handlers=[Checkpoints(folder, 2), PDCRFigures(1)], **knobs,
        )

        @engine.on(Events.ITERATION_COMPLETED(once=steps))
        def stop(engine):
            if steps < 6:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            engine.run()
        return {**network.state_dict(), **measured.state_dict()}

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "killed", 3)
    resumed = run(tmp_path / "killed", 6, resume=tmp_path / "killed")
    assert any("projectors" in name for name in whole)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_frozen_encoder_with_taps_trains_the_decoder_alone(batch):
    image, label = batch
    network = unet(sites=SITES)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    engine = Trainer(
        device="cpu", max_epochs=1, epoch_length=2, train_data_loader=[{"image": image, "label": label}] * 2,
        network=network, optimizer=torch.optim.AdamW(network.parameters(), 0.01), loss_function=loss(),
        inferer=FeatureTaps(["down_1", "down_2"]), frozen=FrozenEncoder(network, ["conv_0.", "down_"], 1),
    )
    engine.run()
    moved = {name.split(".")[0] for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"upcat_4", "upcat_3", "upcat_2", "upcat_1", "final_conv"}


def test_monai_s_own_trainer_takes_the_total(batch):
    image, label = batch
    total, network = TotalLoss(loss()), unet(sites=SITES)
    trainer = SupervisedTrainer(
        device="cpu", max_epochs=2, train_data_loader=[{"image": image, "label": label}] * 2, network=network,
        optimizer=torch.optim.AdamW([*network.parameters(), *total.parameters()], 0.01), loss_function=total,
        inferer=FeatureTaps(["down_1", "down_2"]), decollate=False,
    )
    trainer.run()
    assert list(total.terms) == ["dice", "cross_entropy", "intra"]
    assert float(sum(total.terms.values())) == pytest.approx(float(trainer.state.output["loss"].detach()), rel=1e-6)
    assert not any(value.requires_grad for value in total.terms.values())


GROWTH = """
import re, torch
from medcl_monai import LabelBoxes
def peak():  # the parent's peak is in getrusage, but not here
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
boxes = LabelBoxes({"map": [23]}, 14, 64)
label = torch.randint(0, 14, (2, 1, 128, 128, 128), dtype=torch.uint8)
boxes(label[:, :, :32, :32, :32].contiguous(), {"map": (8, 8, 8)})
before = peak()
boxes(label, {"map": (32, 32, 32)})
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_the_growth_of_memory_is_bounded_in_three_dimensions():
    """One class at a time: 14 classes of two volumes of 128³ would take 235 MB at once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    grown = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True, env=environment)
    assert 16 * 1024 < int(grown.stdout) < 64 * 1024


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"intra_weight": -1.0}, "weights must be 0 or more"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"cross_weight": 1.0}, r"cross_channels must name two of the taps \['down_1', 'down_2'\], got \[\]"),
        ({"cross_weight": 1.0, "cross_channels": {"down_1": 8, "upcat_1": 8}}, "cross_channels must name two"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        loss(**settings)


def test_channels_of_cross_that_are_not_those_of_the_map_and_one_cell_are_refused(batch):
    image, label = batch
    output = FeatureTaps(["down_1", "down_2"])(image, unet())
    with pytest.raises(ValueError, match="cross_channels gives tap 'down_1' 32 channels, the map has 8"):
        loss(cross_weight=1.0, cross_channels={"down_1": 32, "down_2": 16})(output, label)
    with pytest.raises(ValueError, match="number 1 gives tap 'down_1' one cell, and no pair"):
        loss(number=1)(output, label)


def test_taps_of_cross_need_equally_many_sides():
    boxes = LabelBoxes({"a": [3], "b": [3, 5]}, 2)
    with pytest.raises(ValueError, match=r"equally many box sides, got \{'a': 1, 'b': 2\}"):
        PDCRLoss(segmentation(), boxes, cross_weight=1.0, cross_channels={"a": 4, "b": 4})


def test_an_output_without_taps_is_refused(batch):
    image, label = batch
    with pytest.raises(ValueError, match=r"set train::inferer to medcl_monai\.FeatureTaps"):
        loss()(unet()(image), label)
    with pytest.raises(ValueError, match=r"the output has no tap 'down_2', but \['pred', 'down_1'\]"):
        loss()(FeatureTaps(["down_1"])(image, unet()), label)
    with pytest.raises(ValueError, match=r"tap 'down_4' has one cell at size \(16, 16\); tap an earlier layer"):
        loss(["down_4"])(FeatureTaps(["down_4"])(image[..., :16, :16], unet()), label[..., :16, :16])


def test_a_label_outside_the_classes_is_refused_as_the_segmentation_loss_says_it(batch):
    image, label = batch
    label[0, 0, 0, 0] = CLASSES
    with pytest.raises(ValueError, match="label values 0 to 3 are outside 0 to 2"):
        loss()(FeatureTaps(["down_1", "down_2"])(image, unet()), label)


def test_weights_of_a_basic_unet_start_the_network_and_the_report_names_the_rest(tmp_path, batch):
    image, _ = batch
    source = unet().eval()
    weights = {name: value for name, value in source.state_dict().items() if not name.startswith("final_conv")}
    torch.save({**weights, "head.weight": torch.zeros(1)}, tmp_path / "restored.pt")
    network = unet(sites=SITES).eval()
    report = load_pretrained(tmp_path / "restored.pt", network, 0.45)
    assert len(report.carried) == 80
    assert report.unused == ("head.weight",)
    assert {name for name in report.missing if ".uafs." not in name} == {"final_conv.weight", "final_conv.bias"}
    assert len(report.missing) == 26
    assert "head.weight" in report.listing()
    network.final_conv.load_state_dict(source.final_conv.state_dict())
    assert torch.equal(network(image), source(image))  # gates are closed: the same function


def test_weights_of_jcl_start_a_network_of_the_same_features(tmp_path):
    settings = {"features": (16, 32, 64, 128, 256, 16), "norm": "batch", "act": ("LeakyReLU", {"inplace": True})}
    pretraining = JCL(BasicUNet(2, 1, 2, **settings))
    weights = {name: pretraining.backbone.state_dict()[name] for name in pretraining.shared_parts()}
    torch.save(weights, tmp_path / "pretrained.pt")
    network = insert_uafs(BasicUNet(2, 1, CLASSES, **settings), SITES)
    report = load_pretrained(tmp_path / "pretrained.pt", network, 0.9)
    assert set(report.carried) == set(weights)
    assert report.unused == report.reshaped == ()
    assert [name for name in report.missing if ".uafs." in name]


def test_a_plain_network_that_loads_a_selected_one_is_told_what_it_loses(tmp_path):
    torch.save(unet(sites=SITES).state_dict(), tmp_path / "model.pt")
    report = load_pretrained(tmp_path / "model.pt", unet(), 1.0)
    assert len(report.unused) == 24
    assert all(".uafs." in name for name in report.unused)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        unet().load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))


@pytest.mark.slow
def test_the_published_form_separates_easy_discs():
    """Without the loss the cosine of foreground and background cells stays near 0; with it, it turns negative."""
    found = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        network = UNet(2, 1, 2, (8, 16, 32), (2, 2), num_res_units=2)
        boxes = LabelBoxes({"model.1.submodule.0": SIDES}, 2, centre=0.0)
        measured = PDCRLoss(FlatCrossEntropy(), boxes, intra_weight=weight)
        optimizer = torch.optim.AdamW(network.parameters(), 0.002)
        taps = FeatureTaps(boxes.sides)
        for step in range(100):
            image, label = discs(step)
            optimizer.zero_grad()
            sum(measured(taps(image, network), label).values()).backward()
            optimizer.step()
        image, label = discs(1000)
        output = {name: value.detach() for name, value in taps(image, network).items()}
        (name, cells), = boxes(label, {name: output[name].shape[2:] for name in boxes.sides}).items()
        found[weight] = foreground_background_cosine(cell_embeddings(output[name], cells.index), cells)
    assert found[1.0] < found[0.0] - 0.3


def discs(seed):
    """Discs of signal-to-noise ratio 1.5 on 16 images of 64 by 64."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    centre = 16 + 32 * torch.rand(16, 2, 1, 1, generator=generator)
    radius = 8 + 8 * torch.rand(16, 1, 1, generator=generator)
    label = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2).float()[:, None]
    return 1.5 * label + torch.randn(16, 1, 64, 64, generator=generator), label


@pytest.mark.slow
def test_on_small_structures_the_published_form_rings_and_the_balanced_separates(hippocampus, preprocessing, caplog):
    """Six labelled volumes of the hippocampus, weight 0.1, 200 steps: the one draws all cells together."""
    entries = sorted(split_dataset(hippocampus).training, key=lambda entry: entry["image"])[:6]
    data = SliceDataset(entries, preprocessing(("image", "label"), 1.0), [48, 64])
    looked = {}
    for form in (pdcr, balanced_pdcr):
        torch.manual_seed(0)
        caplog.clear()
        network = unet(features=(8, 16, 32, 64, 64, 8))
        boxes = LabelBoxes({"down_1": SIDES, "down_2": SIDES}, 3)
        measured = PDCRLoss(SegmentationLoss(label_shares(data, 3)), boxes, 0.1, pair_loss=form)
        engine = Trainer(
            device="cpu", max_epochs=1, epoch_length=200, train_data_loader=sample_loader(data, 16, seed=0),
            network=network, optimizer=torch.optim.AdamW(network.parameters(), 0.002), loss_function=measured,
            inferer=FeatureTaps(measured.watched), train_handlers=[CollapseMonitor(10), PDCRFigures(10)],
        )
        engine.run()
        looked[form] = engine.state.figures["down_2.foreground_background"], "the term intra has been" in caplog.text
    assert looked[pdcr][1]
    assert looked[pdcr][0] > 0.9
    assert not looked[balanced_pdcr][1]
    assert looked[balanced_pdcr][0] < 0.2

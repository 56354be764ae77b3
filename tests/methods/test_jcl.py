import math
import re

import pytest
import torch
from ignite.engine import Events
from torch import nn

from medcl_monai.losses.ntxent import ntxent
from medcl_monai.losses.positional import local_pair_contrast
from medcl_monai.methods.jcl import JCL, JCLLoss, JCLViews, check_view_size, feature_distance
from medcl_monai.networks.encode import encode

F64 = torch.float64
PAPER = (32, 64, 128, 256, 512, 32)
I_VIEWS, V_VIEWS = ("aligned_1", "aligned_2"), ("view_1", "view_2")


def batch_of(samples=4, size=(128, 128)):
    return {
        "image": torch.randn(samples, 1, *size),
        "position": torch.linspace(0.05, 0.95, samples, dtype=F64),
        "subject": torch.arange(samples),
    }


def views_of(samples=4, size=(128, 128)):
    position = torch.linspace(0.05, 0.95, samples, dtype=F64)
    views = {name: torch.randn(samples, 1, *size) for name in (*I_VIEWS, *V_VIEWS)}
    return {**views, "position": position, "subject": torch.arange(samples)}


def touched(module):
    return {name for name, p in module.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}


def reduce_oracle(values, corner_aligned):
    network = JCL.__new__(JCL)
    nn.Module.__init__(network)
    network.stages, network.dims, network.corner_aligned = 2, 2, corner_aligned
    return network.reduce(values[None, None])[0, 0]


def test_the_bottleneck_is_reduced_by_means_over_blocks_or_as_released():
    ramp = torch.arange(64, dtype=F64).reshape(8, 8)
    assert reduce_oracle(ramp, False).flatten().tolist() == [13.5, 17.5, 45.5, 49.5]
    assert reduce_oracle(ramp, True).flatten().tolist() == pytest.approx([0, 7, 56, 63])
    for corner_aligned, expected in ((False, 1333.5), (True, 1788.5)):
        reduced = reduce_oracle(ramp**2, corner_aligned)
        assert float(feature_distance(torch.zeros_like(reduced), reduced)) == pytest.approx(expected)


def test_images_and_bottleneck_are_reduced_by_means_over_blocks_unless_asked(unet):
    network, views = JCL(unet(features=(4, 8, 8, 8, 8, 4))).eval(), views_of(2)
    output = network(views)
    bottleneck = encode(network.backbone, views["aligned_2"])[-1]
    torch.testing.assert_close(output["feature_auxiliary"], nn.functional.avg_pool2d(bottleneck, 4))
    reduced = nn.functional.avg_pool2d(views["aligned_1"], 4)
    torch.testing.assert_close(output["feature_dominant"], encode(network.backbone, reduced)[-1])


def test_the_feature_term_sends_gradient_to_both_sides():
    dominant = torch.zeros(1, 1, 2, 2, dtype=F64, requires_grad=True)
    ramp = (torch.arange(64, dtype=F64) + 1).reshape(8, 8).requires_grad_()
    feature_distance(dominant, reduce_oracle(ramp, False)[None, None]).backward()
    assert torch.equal(dominant.grad, torch.full_like(dominant, -0.25))
    assert torch.equal(ramp.grad, torch.full_like(ramp, 1 / 64))
    ramp.grad = None
    feature_distance(dominant, reduce_oracle(ramp, True)[None, None]).backward()
    assert int((ramp.grad != 0).sum()) == 4  # the corners: why the release's reduction is not the default


def oracle_output():
    a = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=F64)
    d = torch.tensor([[0.8, 0.6], [1, 0], [-1, 0]], dtype=F64)
    sites = [torch.stack([a, a], -1), torch.stack([d, d.roll(1, 0)], -1)]
    ramp = torch.arange(64, dtype=F64).reshape(8, 8)
    reduced = reduce_oracle(ramp, False)[None, None]
    output = {"image_auxiliary": a, "image_dominant": d, "pixel_auxiliary": sites[0], "pixel_dominant": sites[1]}
    output.update(feature_auxiliary=reduced, feature_dominant=torch.zeros_like(reduced))
    return output, {"position": torch.tensor([0.10, 0.15, 0.90], dtype=F64)}


def test_the_terms_are_weighted_and_summed_as_printed():
    terms = {name: float(value) for name, value in JCLLoss()(*oracle_output()).items()}
    assert terms == pytest.approx({"image": 2.7450239637, "pixel": 2.7058453152, "feature": 31.5}, abs=1e-9)
    assert sum(terms.values()) == pytest.approx(36.9508692789, abs=1e-9)


def test_the_base_temperature_scales_the_contrasts_as_released():
    output, target = oracle_output()
    plain, released = JCLLoss()(output, target), JCLLoss(base_temperature=0.07)(output, target)
    assert float(released["image"]) == pytest.approx(3.9214628053, abs=1e-9)
    assert float(released["pixel"] / plain["pixel"]) == pytest.approx(1 / 0.7)
    assert released["feature"] == plain["feature"]
    eye = torch.eye(2, dtype=F64)
    pair = {"image_auxiliary": eye, "image_dominant": eye}
    value = JCLLoss(1.0, 0.0, 0.0, base_temperature=0.07)(pair, {"position": torch.tensor([0.50, 0.55], dtype=F64)})
    assert float(value["image"]) == pytest.approx(9.5239392320, abs=1e-9)
    equal = {name: torch.ones(16, 4, dtype=F64) for name in pair}
    value = JCLLoss(1.0, 0.0, 0.0, base_temperature=0.07)(equal, {"position": torch.linspace(0, 1, 16)})
    assert float(value["image"]) == pytest.approx(4.9056960064, abs=1e-9)
    with pytest.raises(ValueError, match="base_temperature must be above 0 or None, got -1"):
        JCLLoss(base_temperature=-1.0)


@pytest.mark.parametrize("off", ["image", "pixel", "feature"])
def test_a_term_of_weight_0_is_neither_computed_nor_returned(off):
    output, target = oracle_output()
    rest = {name: value for name, value in output.items() if not name.startswith(off)}
    assert set(JCLLoss(**{f"{off}_weight": 0.0})(rest, target)) == {"image", "pixel", "feature"} - {off}


def test_without_stages_and_with_the_image_level_alone_it_is_positional_contrast(unet):
    network = JCL(unet(features=(4, 8, 8, 8, 8, 4)), stages=0, pixel=False)
    views = views_of(4, (32, 32))
    output = network(views)
    terms = JCLLoss(1.0, 0.0, 0.0, threshold=0.4)(output, views)
    pair = output["image_auxiliary"], output["image_dominant"]
    assert terms == {"image": local_pair_contrast(*pair, views["position"], 0.1, 0.4)}
    distinct = JCLLoss(1.0, 0.0, 0.0, threshold=1e-3)(output, views)["image"]
    torch.testing.assert_close(distinct, ntxent(*pair, 0.1))


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (-1.0, 1.0, 1.0)])
def test_weights_that_train_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="not all 0"):
        JCLLoss(*weights)


def test_each_term_reaches_exactly_its_parts_and_its_views(unet):
    network = JCL(unet())
    encoder = ("backbone.conv_0.", "backbone.down_")
    stages = ("backbone.upcat_4.", "backbone.upcat_3.")
    reached = {
        "image": ((*encoder, *stages, "image_dominant.", "image_auxiliary."), V_VIEWS),
        "pixel": ((*encoder, *stages, "pixel_auxiliary."), I_VIEWS),
        "feature": (encoder, I_VIEWS),
    }
    for term, (parts, pair) in reached.items():
        views = views_of()
        for name in (*I_VIEWS, *V_VIEWS):
            views[name].requires_grad_()
        network.zero_grad()
        JCLLoss()(network(views), views)[term].backward()
        assert touched(network) == {name for name, _ in network.named_parameters() if name.startswith(parts)}, term
        gradients = {name: views[name].grad for name in (*I_VIEWS, *V_VIEWS)}
        assert {name for name, g in gradients.items() if g is not None and float(g.abs().sum()) > 0} == set(pair), term


def test_the_encoder_is_one_object_and_forward_moves_only_the_norms_it_runs(unet):
    small, paper = JCL(unet()), JCL(unet(features=PAPER))
    networks = [small, paper, JCL(unet(3), 1), JCL(unet(3, PAPER))]
    trained = [sum(p.numel() for p in network.parameters() if p.requires_grad) for network in networks]
    assert trained == [2_157_552, 8_438_752, 6_535_888, 24_411_680]
    before = {name: value.clone() for name, value in small.backbone.named_buffers()}
    small(views_of())
    moved = [name for name, value in small.backbone.named_buffers() if not torch.equal(value, before[name])]
    assert len(moved) == 42
    assert all(name.startswith(("conv_0", "down_", "upcat_4", "upcat_3")) for name in moved)
    assert not [name for name in small.state_dict() if "momentum" in name or "queue" in name]


@pytest.mark.parametrize(
    ("stages", "tensors", "parameters", "share"),
    [(0, 70, 40, 60.6), (1, 86, 50, 90.1), (2, 102, 60, 97.45), (3, 118, 70, 99.3), (4, 134, 80, 99.997)],
)
def test_what_is_trained_follows_the_stages(unet, stages, tensors, parameters, share):
    network = JCL(unet(), stages)
    parts, state = network.trained_parts(), network.backbone.state_dict()
    assert (len(parts), len(state)) == (tensors, 136)
    assert network.shared_parts() == parts
    moving = {name for name, p in network.backbone.named_parameters() if p.requires_grad}
    assert moving == {name for name, _ in network.backbone.named_parameters()} & set(parts)
    assert len(moving) == parameters
    carried = 100 * sum(state[name].numel() for name in parts) / sum(value.numel() for value in state.values())
    assert carried == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    ("dims", "stages", "size"),
    [(2, 0, 32), (2, 1, 64), (2, 2, 128), (2, 3, 256), (2, 4, 512), (3, 0, 32), (3, 1, 64), (3, 2, 128)],
)
@pytest.mark.parametrize("corner_aligned", [False, True])
def test_maps_of_both_branches_have_one_grid(unet, dims, stages, size, corner_aligned):
    network = JCL(unet(dims, features=(2, 8, 8, 8, 8, 4)), stages, corner_aligned=corner_aligned)
    with torch.no_grad():
        output = network(views_of(2, (size,) * dims))
    cells = (size // 16,) * dims
    assert output["pixel_dominant"].shape[2:] == output["pixel_auxiliary"].shape[2:] == cells
    assert output["pixel_dominant"].shape == output["pixel_auxiliary"].shape
    assert output["feature_dominant"].shape == output["feature_auxiliary"].shape
    assert output["image_dominant"].shape == output["image_auxiliary"].shape == (2, 128)
    assert output["features"].shape == (2, 8)


@pytest.mark.parametrize(
    ("dims", "features", "stages", "size", "feature", "pixel"),
    [
        (2, (16, 32, 64, 128, 256, 16), 2, 128, (256, 2, 2), (64, 8, 8)),
        (2, PAPER, 2, 256, (512, 4, 4), (128, 16, 16)),
        (3, (16, 32, 64, 128, 256, 16), 1, 64, (256, 2, 2, 2), (128, 4, 4, 4)),
    ],
)
def test_the_shapes_of_a_profile_are_the_specified_ones(unet, dims, features, stages, size, feature, pixel):
    with torch.no_grad():
        output = JCL(unet(dims, features), stages)(views_of(2, (size,) * dims))
    shapes = {name: tuple(value.shape[1:]) for name, value in output.items()}
    both = {f"{name}_{branch}": shape for branch in ("dominant", "auxiliary")
            for name, shape in (("feature", feature), ("pixel", pixel), ("image", (128,)))}
    assert shapes == {**both, "features": feature[:1]}


def test_the_monitored_features_are_the_pooled_auxiliary_bottleneck_without_gradient(unet):
    network, views = JCL(unet()).eval(), views_of(2)
    output = network(views)
    bottleneck = encode(network.backbone, views["aligned_2"])[-1]
    torch.testing.assert_close(output["features"], bottleneck.mean((2, 3)))
    assert not output["features"].requires_grad
    assert output["feature_dominant"].requires_grad
    assert output["feature_auxiliary"].requires_grad


@pytest.mark.parametrize("level", ["image", "pixel"])
def test_a_level_that_is_off_leaves_no_parameter_without_gradient(unet, level):
    network = JCL(unet(), **{level: False})
    views = views_of()
    output = network(views)
    assert not [name for name in output if name.startswith(level)]
    sum(JCLLoss(**{f"{level}_weight": 0.0})(output, views).values()).backward()
    assert touched(network) == {name for name, p in network.named_parameters() if p.requires_grad}


def test_levels_and_stages_that_train_nothing_or_do_not_exist_are_refused(unet):
    with pytest.raises(ValueError, match="stages must be 0 to 4, got 5"):
        JCL(unet(), stages=5)
    with pytest.raises(ValueError, match="both off"):
        JCL(unet(), image=False, pixel=False)


@pytest.mark.parametrize(
    ("size", "stages", "multiple", "way_out"),
    [
        ((352, 352), 2, 64, "use 320 or 384, or stages=1 (multiples of 32)"),
        ((192, 160), 2, 64, "use 128 or 192, or stages=1 (multiples of 32)"),
        ((32, 32), 2, 64, "use 128, or stages=1 (multiples of 32)"),  # 64 would leave one cell
        ((40, 48), 0, 16, "use 32 or 48"),
    ],
)
def test_view_sizes_off_the_grid_are_named_with_the_way_out(unet, size, stages, multiple, way_out):
    message = (
        f"JCL: view size {size} is not a multiple of {multiple} in every axis: the backbone halves four times "
        f"after a reduction by {2**stages} (stages={stages}); {way_out}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        JCL(unet(features=(2,) * 6), stages)(views_of(2, size))


@pytest.mark.parametrize(
    ("size", "stages", "cells", "way_out"),
    [
        ((64, 64), 2, "1x1", "128, or 64 with stages=1"),
        ((64, 64, 64), 2, "1x1x1", "128, or 64 with stages=1"),
        ((16, 16), 0, "1x1", "32"),
    ],
)
def test_view_sizes_that_leave_one_cell_are_named_with_the_way_out(unet, size, stages, cells, way_out):
    message = (
        f"JCL: view size {size} leaves a {cells} bottleneck in the dominant branch (stages={stages}): "
        f"the smallest size is {way_out}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        JCL(unet(len(size), features=(2,) * 6), stages)(views_of(2, size))


@pytest.mark.parametrize("size", [(192, 128), (64, 128), (128, 128, 64)])
def test_view_sizes_that_fit_need_not_be_square(size):
    check_view_size(size, 2)


def test_autocast_leaves_the_loss_as_it_is(unet):
    views = views_of()
    output = {name: value.detach() for name, value in JCL(unet())(views).items()}
    plain = JCLLoss()(output, views)
    with torch.autocast("cpu", torch.bfloat16):
        assert JCLLoss()(output, views) == plain


def test_the_backbone_scripts(unet):
    network = JCL(unet())
    scripted = torch.jit.script(network.backbone.eval())
    x = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(scripted(x), network.backbone(x))
    assert len(encode(network.backbone, x)) == 5


def test_the_aligned_pair_is_the_sample_bit_for_bit_and_the_varied_pair_differs():
    batch = batch_of()
    views, target = JCLViews()(batch)
    assert all(views[name] is batch["image"] for name in I_VIEWS)
    assert not torch.equal(views["view_1"], views["view_2"])
    assert target["warp_1"].shape == (4, 2, 3)
    assert target["position"] is batch["position"]
    jittered, _ = JCLViews(aligned_jitter=0.1)(batch)
    assert not torch.equal(jittered["aligned_1"], jittered["aligned_2"])


@pytest.mark.slow
def test_over_150_steps_every_term_is_learned_and_nothing_collapses(hippocampus, unet, preprocessing):
    from medcl_monai import Pretrainer, SliceDataset, sample_loader, split_dataset
    from medcl_monai.diagnostics.figures import effective_rank
    from medcl_monai.handlers.schedule import Schedule

    split = split_dataset(hippocampus)
    data = SliceDataset(split.pretraining, preprocessing(["image"], 0.5), (128, 128))
    network = JCL(unet())
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-5)
    terms = []
    engine = Pretrainer(
        device="cpu", max_epochs=1, epoch_length=150, train_data_loader=sample_loader(data, 16), network=network,
        optimizer=optimizer, loss_function=JCLLoss(), views=JCLViews(), clip=12.0, train_handlers=[Schedule(optimizer)],
    )
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: terms.append(engine.state.output[0]["terms"]))
    engine.run()
    means = {name: [sum(float(t[name]) for t in part) / 10 for part in (terms[:10], terms[-10:])] for name in terms[0]}
    for name, share in (("image", 0.65), ("pixel", 0.7), ("feature", 0.4)):
        assert means[name][1] < share * means[name][0], (name, means)
    assert means["image"][1] < math.log(31) - 0.5, means  # ln(2N - 1) is the value of collapsed embeddings

    unseen = [{key: value for key, value in entry.items() if key != "label"} for entry in split.test[:8]]
    slices = SliceDataset(unseen, preprocessing(["image"], 0.5), (128, 128))
    images = torch.stack([slices[index]["image"] for index in range(len(slices))])
    with torch.no_grad():  # in train mode: batch statistics, as the collapse monitor reads them
        features = torch.cat([encode(network.backbone, batch)[-1].mean((2, 3)) for batch in images.split(16)])
    rank = float(effective_rank(features - features.mean(0)))  # centred: the mean alone is most of the norm
    assert rank > 10, rank

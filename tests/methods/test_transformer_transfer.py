import math

import pytest
import torch
from monai.networks.layers import DropPath
from monai.networks.nets import SwinUNETR

from medcl_monai.handlers.momentum_schedule import MomentumSchedule
from medcl_monai.losses.local import local_infonce
from medcl_monai.methods.transformer_transfer import SwinMoCo, SwinMoCoLoss, SwinMoCoViews
from medcl_monai.networks.encode import decode, encode
from medcl_monai.networks.merging import LegacyPatchMerging
from medcl_monai.networks.momentum import MomentumCopy, momentum_at
from medcl_monai.networks.swin_unet import SwinUNet
from medcl_monai.transforms.crop_views import CropViews
from medcl_monai.transforms.regions import draw_regions, sample_regions

SMALL = {"projector_width": 32, "projection_dim": 16, "momentum": 0.9}


def backbone(dims=2, **knobs):
    return SwinUNet(dims, 1, 3, **{"patch_size": 2, "embed_dim": 8, "window_size": 2, **knobs})


def network(dims=2, **knobs):
    torch.manual_seed(0)
    return SwinMoCo(backbone(dims), **{**SMALL, **knobs})


def made(samples=4, size=(32, 32), regions=16):
    batch = {
        "image": torch.rand(samples, 1, *size), "position": torch.rand(samples).double(),
        "subject": torch.arange(samples),
    }
    return SwinMoCoViews(CropViews(size), regions=regions)(batch)


def moved(net, loss):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        views, target = made()
        optimizer.zero_grad()
        output = net(views)
        sum(loss(output, target).values()).backward()
        optimizer.step()
        net.update([output])
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def reached(module):
    return {name for name, p in module.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}


def test_heads_have_the_layers_and_the_parameters_of_mocov3():
    net = SwinMoCo(SwinUNet(2, 3, 9))
    assert sum(p.numel() for p in net.projector.parameters()) == 20_987_904
    assert sum(p.numel() for p in net.predictor.parameters()) == 2_105_344
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == pytest.approx(43.5e6, abs=5e4)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(84.9e6 + 6.76e6, abs=1e5)  # the decoder too
    assert [type(layer).__name__ for layer in net.projector] == [
        "Linear", "GlobalBatchNorm", "ReLU", "Linear", "GlobalBatchNorm", "ReLU", "Linear", "GlobalBatchNorm"
    ]
    assert net.projector[-1].weight is None
    assert all(layer.bias is None for layer in net.projector if isinstance(layer, torch.nn.Linear))


@pytest.mark.parametrize(("dims", "level"), [(2, None), (2, 0), (2, 2), (3, 1)])
def test_shapes(dims, level):
    net, (views, target) = network(dims, decoder_level=level), made(4, (32,) * dims)
    output = net(views)
    assert all(output[f"{kind}_{view}"].shape == (4, 16) for kind in ("query", "key") for view in (1, 2))
    assert output["features"].shape == (8, 64)
    assert output["projection"].shape == (8, 16)
    dense = {name: tuple(value.shape) for name, value in output.items() if name.startswith("dense")}
    side = None if level is None else 4 * 2**level
    assert set(dense.values()) == (set() if level is None else {(4, 128, *[side] * dims)})
    terms = SwinMoCoLoss(0.2, dense_weight=0.0 if level is None else 0.5)(output, target)
    assert set(terms) == ({"contrast"} if level is None else {"contrast", "dense"})


def test_one_pass_of_both_views_equals_two_and_heads_see_one_view_at_a_time():
    net, (views, _) = SwinMoCo(backbone(drop_path_rate=0.0), **SMALL), made()
    output = net(views)
    pair = [encode(net.backbone, views[f"view_{view}"])[-1].flatten(2).mean(2) for view in (1, 2)]
    for view, features in enumerate(pair, 1):
        torch.testing.assert_close(output["features"].chunk(2)[view - 1], features, atol=1e-6, rtol=0)
        torch.testing.assert_close(output[f"query_{view}"], net.predictor(net.projector(features)))
    other = {**views, "view_2": views["view_2"].flip(0)}
    torch.testing.assert_close(net(other)["query_1"], output["query_1"], atol=1e-6, rtol=0)
    stacked = net.predictor(net.projector(torch.cat(pair))).chunk(2)[0]
    assert float((stacked - output["query_1"]).abs().max().detach()) > 1e-3


def test_the_contrast_moves_the_encoder_alone():
    net = network()
    changed = moved(net, SwinMoCoLoss(0.2))
    of_backbone = {name.removeprefix("backbone.") for name in changed if name.startswith("backbone.")}
    assert of_backbone == set(net.trained_parts())
    assert not any(name.startswith(("decoder", "out")) for name in of_backbone)
    assert len(net.trained_parts()) == 119
    assert not any(name.endswith("index") for name in net.shared_parts())


def test_a_frozen_projection_is_shared_though_not_trained():
    net = network(freeze_patch=True)
    assert len(net.trained_parts()) == 117
    assert set(net.shared_parts()) - set(net.trained_parts()) == {
        "swinViT.patch_embed.proj.weight", "swinViT.patch_embed.proj.bias"
    }
    changed = moved(net, SwinMoCoLoss(0.2))
    assert {name.removeprefix("backbone.") for name in changed if name.startswith("backbone.")} == set(
        net.trained_parts()
    )


def test_the_dense_term_reaches_its_stages_and_skips_are_detached():
    net, (views, target) = network(decoder_level=1), made()
    terms = SwinMoCoLoss(0.2, dense_weight=0.5)(net(views), target)
    terms["dense"].backward()
    found = reached(net.backbone)
    decoder = {".".join(name.split(".")[1:3]) for name in found if name.startswith("decoder.")}
    assert decoder == {f"{part}.{stage}" for part in ("expand", "skip", "layers_up") for stage in (0, 1)}
    assert not any(name.startswith("out") for name in found)
    assert any(name.startswith("swinViT.layers4") for name in found)  # by the deepest map
    assert not reached(net.projector)


def test_detached_skips_give_the_early_layers_no_gradient_of_their_own():
    """With the deepest map cut off, nothing is left: an attached skip would bring some."""
    net, (views, target) = network(decoder_level=2), made()
    original = net.backbone.norm.forward
    net.backbone.norm.forward = lambda x: original(x).detach()
    SwinMoCoLoss(0.2, contrast_weight=0.0, dense_weight=1.0)(net(views), target)["dense"].backward()
    assert not [name for name in reached(net.backbone) if name.startswith(("swinViT", "norm"))]


def test_a_second_stage_trains_the_decoder_of_a_frozen_encoder():
    net = network(decoder_level=1, freeze_encoder=True)
    changed = moved(net, SwinMoCoLoss(contrast_weight=0.0, dense_weight=1.0))
    of_backbone = {name.removeprefix("backbone.") for name in changed if name.startswith("backbone.")}
    assert of_backbone == set(net.trained_parts())
    assert all(name.startswith("decoder.") for name in of_backbone)
    assert len(net.shared_parts()) == 119 + len(of_backbone)
    assert not hasattr(net, "projector")
    assert set(net.watched().keys) <= set(net(made()[0]))


def test_skips_are_dropped_for_whole_samples_of_the_queries():
    net, (views, _) = SwinMoCo(backbone(drop_path_rate=0.0), **SMALL, decoder_level=2, skip_drop=1.0), made()
    blind = net(views)
    shuffled = encode(net.backbone, torch.cat([views["view_1"], views["view_2"]]))
    net.skip_drop = 0.0
    seeing = net(views)
    assert not torch.allclose(blind["dense_query_1"], seeing["dense_query_1"])
    torch.testing.assert_close(blind["dense_key_1"], seeing["dense_key_1"])
    zeros = [torch.zeros_like(x) for x in shuffled[:-1]]
    wanted = net.dense_predictor(net.dense_projector(decode(net.backbone, [*zeros, shuffled[-1]], 3)))
    torch.testing.assert_close(blind["dense_query_1"], wanted.chunk(2)[0])


def test_both_directions_of_the_dense_term_find_the_same_places():
    torch.manual_seed(0)
    _, target = made(2, (32, 32), 8)
    regions = draw_regions(target["warp_1"], target["warp_2"], 8)
    grid = torch.nn.functional.affine_grid(target["warp_1"], (2, 1, 16, 16), align_corners=False)
    other = torch.nn.functional.affine_grid(target["warp_2"], (2, 1, 16, 16), align_corners=False)
    code = [torch.cat([part, 1 - part.square()], -1).movedim(-1, 1) for part in (grid, other)]  # place in the sample
    output = {"dense_query_1": code[0], "dense_key_2": code[1], "dense_query_2": code[1], "dense_key_1": code[0]}
    loss = SwinMoCoLoss(contrast_weight=0.0, dense_weight=1.0, dense_temperature=0.01, min_distance=0.0)
    first, second = (code[0], regions.points_1), (code[1], regions.points_2)
    pairs = ((*first, *second), (*second, *first))
    near = torch.zeros(2, 8, 8, dtype=torch.bool)
    directions = [
        local_infonce(sample_regions(query, ours), sample_regions(key, theirs), regions.valid, near, 0.01)
        for query, ours, key, theirs in pairs
    ]
    right = float(loss(output, {**target, "regions": regions})["dense"])
    assert right == pytest.approx(float(sum(directions)) / 2, rel=1e-5)
    swapped = regions._replace(points_1=regions.points_2, points_2=regions.points_1)
    wrong = float(loss(output, {**target, "regions": swapped})["dense"])
    assert right < wrong / 2


def test_the_copy_skips_no_blocks_follows_loads_and_moves_only_in_update():
    net = network()
    assert any(isinstance(module, DropPath) for module in net.backbone.modules())
    assert not any(isinstance(module, DropPath) for module in net.momentum_copy.modules())
    weights = {name: torch.randn_like(value) for name, value in net.backbone.state_dict().items()
               if value.is_floating_point()}
    net.backbone.load_state_dict(weights, strict=False)
    assert torch.equal(net.momentum_copy["norm"].weight, net.backbone.norm.weight)
    before = net.momentum_copy["norm"].weight.clone()
    with torch.no_grad():
        net.backbone.norm.weight.add_(1.0)
    output = net(made()[0])
    assert torch.equal(net.momentum_copy["norm"].weight, before)
    net.update([output])
    torch.testing.assert_close(net.momentum_copy["norm"].weight, before + 0.1)


def test_keys_come_from_the_copy():
    net, (views, _) = network(), made()
    keys = net(views)["key_1"]
    with torch.no_grad():
        for part in (net.backbone.swinViT, net.projector):
            for value in part.parameters():
                value.mul_(1.5)
    torch.testing.assert_close(net(views)["key_1"], keys)
    assert not net(views)["key_1"].requires_grad


def test_momentum_rises_along_a_cosine():
    found = [momentum_at(step, 300, 0.99) for step in (0, 30, 75, 150, 225, 300)]
    assert found == pytest.approx([0.99, 0.9902447, 0.9914645, 0.995, 0.9985355, 1.0], abs=1e-7)
    source = torch.nn.Linear(1, 1, bias=False)
    source.weight.data.fill_(1.0)
    copy = MomentumCopy({"layer": source}, 0.9)
    for value, momentum in ((2.0, 0.9), (3.0, 0.95), (5.0, 1.0)):
        source.weight.data.fill_(value)
        copy.momentum = momentum
        copy.update({"layer": source})
    assert float(copy["layer"].weight) == pytest.approx(1.195, abs=1e-6)


def test_six_steps_equal_the_authors_order():
    """The authors move the copy before the keys are computed, with the momentum of the step, counted from 0."""
    torch.manual_seed(0)
    start, steps = 0.9, 6
    source = torch.nn.Linear(4, 4).double()
    theirs, ours = MomentumCopy({"layer": source}, start), MomentumCopy({"layer": source}, start)
    schedule = MomentumSchedule(ours)
    schedule.length = steps
    x, keys = torch.randn(3, 4).double(), []
    for step in range(steps):
        theirs.momentum = momentum_at(step, steps, start)
        theirs.update({"layer": source})
        schedule.set(step)
        keys.append((theirs["layer"](x), ours["layer"](x)))
        with torch.no_grad():
            source.weight.add_(torch.randn(4, 4).double())
        ours.update({"layer": source})
    assert all(torch.equal(first, second) for first, second in keys)


@pytest.mark.parametrize("dims", [2, 3])
def test_swin_unetr_is_trained_the_same_way(dims):
    torch.manual_seed(0)
    unetr = SwinUNETR(
        1, 2, feature_size=12, num_heads=(1, 2, 4, 8), window_size=2, depths=(1, 1, 1, 1), patch_norm=True,
        spatial_dims=dims, downsample="merging" if dims == 2 else LegacyPatchMerging,
    )
    net = SwinMoCo(unetr, **SMALL)
    views, target = made(4, (64,) * dims, 0)
    SwinMoCoLoss(0.2)(net(views), target)["contrast"].backward()
    assert {name.split(".")[0] for name in reached(unetr)} == {"swinViT"}
    assert all(name.startswith("swinViT.") for name in net.shared_parts())
    marks = [name for name in net.shared_parts() if name.endswith("legacy_order")]
    assert len(marks) == (0 if dims == 2 else 4)
    assert not set(marks) & set(net.trained_parts())


def test_the_names_of_swin_unetr_s_transformer_are_shared_without_indices():
    knobs = {"feature_size": 12, "num_heads": (1, 2, 4, 8), "window_size": 4, "spatial_dims": 2}
    for norm, count in ((True, 120), (False, 118)):
        assert len(SwinMoCo(SwinUNETR(1, 2, **knobs, patch_norm=norm), **SMALL).shared_parts()) == count


def test_views_are_standardised_after_their_changes():
    views, _ = made()
    for name in ("view_1", "view_2"):
        torch.testing.assert_close(views[name].mean((2, 3)), torch.zeros(4, 1), atol=1e-5, rtol=0)
        torch.testing.assert_close(views[name].std((2, 3), correction=0), torch.ones(4, 1), atol=1e-4, rtol=0)
    batch = {"image": torch.zeros(2, 1, 32, 32), "position": torch.rand(2), "subject": torch.arange(2)}
    blank, target = SwinMoCoViews(CropViews((32, 32), noise=0.0), regions=0)(batch)
    assert not bool(blank["view_1"].any())
    assert "regions" not in target
    plain, _ = SwinMoCoViews(CropViews((32, 32)), standardise=False)(batch)
    assert float(plain["view_1"].std()) < 0.5


def test_a_run_of_few_steps_should_lose_its_start():
    """The rule of the docstring: the product of the momenta is about exp(-(1 - start) n / 2)."""
    product = math.prod(momentum_at(step, 100, 0.9) for step in range(1, 101))
    assert product == pytest.approx(math.exp(-0.1 * 100 / 2), rel=0.25)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"decoder_level": 3}, "decoder_level must be 0 to 2 or none"),
        ({"freeze_encoder": True}, "freeze_encoder leaves nothing to train"),
        ({"skip_drop": 1.5}, r"skip_drop 1\.5 0 to 1"),
        ({"projection_dim": 0}, "projection_dim 0 must be at least 1"),
        ({"momentum": 1.5}, r"momentum must be 0 to 1, got 1\.5"),
    ],
)
def test_knobs_out_of_range_are_named(knobs, said):
    with pytest.raises(ValueError, match=said):
        network(**knobs)


def test_other_errors_are_named():
    unetr = SwinUNETR(1, 2, feature_size=12, num_heads=(1, 1, 1, 1), spatial_dims=2)
    with pytest.raises(ValueError, match="and the backbone a SwinUNet; got 0 and SwinUNETR"):
        SwinMoCo(unetr, **SMALL, decoder_level=0)
    views, target = made()
    with pytest.raises(ValueError, match="view_1 holds 4 samples, view_2 2"):
        network()({**views, "view_2": views["view_2"][:2]})
    with pytest.raises(ValueError, match="the network gives no 'dense_query_1'"):
        SwinMoCoLoss(dense_weight=0.5)(network()(views), target)
    learning = network(decoder_level=0)(views)
    with pytest.raises(ValueError, match="the network has a decoder_level, but dense_weight 0 would not train it"):
        SwinMoCoLoss()(learning, target)
    without = {name: value for name, value in target.items() if name != "regions"}
    with pytest.raises(ValueError, match="the dense term needs regions, which the views draw: set views::regions"):
        SwinMoCoLoss(dense_weight=0.5)(learning, without)
    frozen = network(decoder_level=0, freeze_encoder=True)(views)
    with pytest.raises(ValueError, match=r"gives no 'query_1' for contrast_weight \(see freeze_encoder\)"):
        SwinMoCoLoss(dense_weight=0.5)(frozen, target)
    with pytest.raises(ValueError, match="regions must be 0 or more, got -1"):
        SwinMoCoViews(CropViews((32, 32)), regions=-1)

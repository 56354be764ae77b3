import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medcl_monai.losses.local import (
    LocalInfoNCELoss,
    local_infonce,
    match_by_feature,
    match_by_location,
    near_regions,
)
from medcl_monai.transforms.regions import Regions, draw_regions, sample_regions

F64 = torch.float64


def loss(anchor, positive, temperature, valid=None, near=None):
    count = anchor.shape[1]
    valid = torch.ones(len(anchor), count, dtype=torch.bool) if valid is None else torch.tensor([valid])
    near = torch.zeros(len(anchor), count, count, dtype=torch.bool) if near is None else near
    return local_infonce(anchor, positive, valid, near, temperature)


@pytest.mark.parametrize(
    ("count", "temperature", "value"), [(4, 0.2, 0.0200123), (4, 0.5, 0.3407530), (20, 0.2, 0.1204648)]
)
def test_perfect_regions_reach_the_lowest_loss(count, temperature, value):
    eye = torch.eye(count, dtype=F64)[None]
    assert float(loss(eye, eye, temperature)) == pytest.approx(value, abs=1e-6)
    assert value == pytest.approx(math.log(1 + (count - 1) * math.exp(-1 / temperature)), abs=1e-6)


def test_regions_that_say_nothing_cost_the_log_of_their_valid_number():
    same = torch.ones(1, 4, 3, dtype=F64).requires_grad_()
    assert loss(same, same, 0.2).item() == pytest.approx(math.log(4))
    assert loss(same, same, 0.2, [True, True, True, False]).item() == pytest.approx(math.log(3))
    nothing = loss(same, same, 0.2, [False] * 4)
    nothing.backward()
    assert nothing.item() == 0
    assert not same.grad.any()


def test_two_regions_and_near_ones_have_the_value_of_the_equation():
    a = torch.eye(2, dtype=F64)[None]
    b = torch.tensor([[[1.0, 0], [0.6, 0.8]]], dtype=F64)
    assert float(loss(a, b, 0.5)) == pytest.approx(0.2775007, abs=1e-6)
    double = torch.eye(3, dtype=F64)[[0, 0, 1]][None]
    near = torch.zeros(1, 3, 3, dtype=torch.bool)
    near[0, 0, 1] = near[0, 1, 0] = near[0, 0, 0] = True
    assert float(loss(double, double, 0.2, near=near)) == pytest.approx(0.0089389, abs=1e-6)
    assert float(loss(double, double, 0.2)) == pytest.approx(0.4688023, abs=1e-6)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 6), st.floats(0.05, 1.0))
def test_the_loss_is_that_of_loops(seed, count, temperature):
    random = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(3, count, 4, dtype=F64, generator=random) for _ in range(2))
    valid = torch.rand(3, count, generator=random) < 0.7
    near = torch.rand(3, count, count, generator=random) < 0.3
    values = []
    for sample in range(3):
        for r in range(count):
            if valid[sample, r]:
                chosen = [s for s in range(count) if s == r or (valid[sample, s] and not near[sample, r, s])]
                cosine = [torch.cosine_similarity(a[sample, r], b[sample, s], dim=0) / temperature for s in chosen]
                values.append(torch.stack(cosine).logsumexp(0) - cosine[chosen.index(r)])
    expected = float(torch.stack(values).mean()) if values else 0.0
    assert float(local_infonce(a, b, valid, near, temperature)) == pytest.approx(expected, abs=1e-9)
    scaled = local_infonce(3 * a, 5 * b, valid, near, temperature)
    assert float(scaled) == pytest.approx(expected, abs=1e-9)


def test_the_other_view_gets_no_gradient_and_autocast_does_not_reach_the_logits():
    a, b = (torch.randn(2, 5, 8, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(a, b, 0.05)
    assert torch.equal(inside, loss(a, b, 0.05))
    inside.backward()
    assert b.grad is None
    assert a.grad.abs().sum() > 0


def test_regions_nearer_than_a_cell_in_either_view_are_near():
    points = torch.tensor([[[0.0, 0.0], [0.2, 0.0], [0.3, 0.0]]])
    far = torch.tensor([[[0.0, 0.0], [0.5, 0.5], [-0.5, 0.5]]])
    regions = Regions(points, far, torch.ones(1, 3, dtype=torch.bool))
    assert near_regions(regions, (8, 8), 1.0)[0].tolist() == [
        [True, True, False], [True, True, True], [False, True, True],
    ]
    assert near_regions(regions, (8, 4), 0.35)[0, 0].tolist() == [True, False, False]
    turned = Regions(far, points, regions.valid)
    assert torch.equal(near_regions(turned, (8, 8), 1.0), near_regions(regions, (8, 8), 1.0))


def test_regions_find_themselves_by_place_or_by_look():
    values = torch.randn(1, 16, 4, 6)
    turned = values.flip(3)
    cells = torch.tensor([[[-1 + 1 / 6, -1 + 1 / 4], [1 / 6, 1 / 4]]])
    mirrored = cells * torch.tensor([-1.0, 1.0])
    regions = Regions(cells, mirrored, torch.ones(1, 2, dtype=torch.bool))
    anchor = torch.stack([values[0, :, 0, 0], values[0, :, 2, 3]])[None]
    by_place, _ = match_by_location(anchor, turned, regions)
    torch.testing.assert_close(by_place, anchor, atol=1e-5, rtol=0)
    by_look, found = match_by_feature(anchor, turned, Regions(cells, cells, regions.valid))
    torch.testing.assert_close(by_look, torch.nn.functional.normalize(anchor, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.points_2, mirrored)


def drawn(target, regions=20):
    """The target with regions, as views draw them."""
    torch.manual_seed(0)
    foreground = target.get("foreground_1")
    return {**target, "regions": draw_regions(target["warp_1"], target["warp_2"], regions, foreground_1=foreground)}


def test_the_term_needs_regions_and_names_its_maps_itself():
    output = {"a": torch.randn(2, 8, 4, 4), "b": torch.randn(2, 8, 4, 4)}
    eye = torch.eye(2, 3).expand(2, -1, -1)
    with pytest.raises(ValueError, match=r"the target holds no regions, but \['warp_1'\]: the views draw them"):
        LocalInfoNCELoss(query="a", key="b")(output, {"warp_1": eye})
    target = drawn({"warp_1": eye, "warp_2": eye}, 4)
    for match in (match_by_location, match_by_feature):
        assert torch.isfinite(LocalInfoNCELoss(match=match, query="a", key="b")(output, target)["local"])
    assert LocalInfoNCELoss(weight=0.0)({}, {}) == {}
    with pytest.raises(ValueError, match=r"min_distance -1\.0 and weight 1\.0 must be 0 or more"):
        LocalInfoNCELoss(min_distance=-1.0)


@pytest.mark.parametrize("match", [match_by_location, match_by_feature])
def test_air_costs_nothing_and_autocast_changes_nothing(match):
    values = torch.randn(2, 3, 8, 6, 6)
    warp = torch.tensor([[0.6, 0.1, 0.1], [-0.1, 0.7, 0.0]]).expand(3, -1, -1)
    output = {"local_query": values[0], "local_key": values[1]}
    target = {"warp_1": warp, "warp_2": torch.eye(2, 3).expand(3, -1, -1)}
    found = []
    for amp in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            found.append(LocalInfoNCELoss(0.05, match=match)(output, drawn(target))["local"])
    assert torch.equal(*found)
    air = {**target, "foreground_1": torch.zeros(3, 1, 8, 8)}
    assert float(LocalInfoNCELoss(match=match)(output, drawn(air))["local"]) == 0


def test_the_term_is_the_mean_over_the_valid_regions_alone():
    values = torch.randn(2, 2, 8, 6, 6)
    points = torch.rand(2, 2, 5, 2) * 2 - 1
    valid = torch.tensor([[True, False, True, True, False], [False, True, True, False, False]])
    regions = Regions(*points, valid)
    term = LocalInfoNCELoss(min_distance=0.0)(
        {"local_query": values[0], "local_key": values[1]}, {"regions": regions}
    )["local"]
    pair = [sample_regions(x, p) for x, p in zip(values, points, strict=True)]
    torch.testing.assert_close(term, local_infonce(*pair, valid, torch.zeros(2, 5, 5, dtype=torch.bool), 0.2))


def test_looking_like_oneself_is_cheaper_than_looking_like_another():
    values = torch.randn(4, 8, 6, 6)
    eye = torch.eye(2, 3).expand(4, -1, -1)
    target = drawn({"warp_1": eye, "warp_2": eye})
    same = LocalInfoNCELoss()({"local_query": values, "local_key": values}, target)["local"]
    other = LocalInfoNCELoss()({"local_query": values, "local_key": values.flip(0)}, target)["local"]
    assert float(same) < 0.5 < float(other)

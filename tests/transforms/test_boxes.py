import itertools

import pytest
import torch
from monai.data import MetaTensor

from medcl_monai import LabelBoxes, affinity, class_shares, pdcr
from medcl_monai.transforms.boxes import box_bounds, cell_places, cells_per_axis


def by_loops(label, bounds, classes):
    """Shares box by box: (B, R, N, K), without labelled voxels zeros."""
    sizes = len(bounds[0][0])
    rows = []
    for image in label:
        for size in range(sizes):
            for place in itertools.product(*(range(low.shape[1]) for low, _ in bounds)):
                box = image[tuple(
                    slice(int(low[size, k]), int(high[size, k])) for (low, high), k in zip(bounds, place, strict=True)
                )]
                counts = torch.stack([(box == value).sum() for value in range(classes)]).float()
                rows.append(counts / counts.sum().clamp(min=1))
    return torch.stack(rows).reshape(len(label), sizes, -1, classes)


def by_integral_image(label, bounds, classes):
    """Counts by corner reads of a cumulative sum in whole numbers."""
    found = []
    for value in range(classes):
        table = (label == value).to(torch.int32)
        for axis in range(1, table.ndim):
            table = table.cumsum(axis)
        padding = [1, 0] * (label.ndim - 1)
        table = torch.nn.functional.pad(table, padding)
        per_size = []
        for size in range(len(bounds[0][0])):
            total = 0
            for corner in itertools.product((0, 1), repeat=len(bounds)):
                ends = [pair[end][size] for pair, end in zip(bounds, corner, strict=True)]
                sign = (-1) ** (len(bounds) - sum(corner))
                mesh = torch.meshgrid(*ends, indexing="ij")
                total = total + sign * table[(slice(None), *mesh)].flatten(1)
            per_size.append(total)
        found.append(torch.stack(per_size, 1))
    counts = torch.stack(found, -1).float()
    return counts / counts.sum(-1, keepdim=True).clamp(min=1)


def some_label(*size, ignored=None):
    torch.manual_seed(3)
    label = torch.randint(0, 4, (2, *size))
    if ignored:
        label[(slice(None), *[slice(*ignored)] * len(size))] = 255
    return label


@pytest.mark.parametrize(("size", "cells"), [((20, 17), (10, 9)), ((12, 9, 10), (6, 5, 5)), ((35, 20), (17, 10))])
def test_shares_are_those_of_loops_over_boxes_and_of_an_integral_image(size, cells):
    label = some_label(*size, ignored=(1, 7))
    places = [torch.arange(count) for count in cells]
    bounds = [
        box_bounds(place, count, extent, [3, 5, 7], 0.5)
        for place, count, extent in zip(places, cells, size, strict=True)
    ]
    found = class_shares(label, {"map": bounds}, 4)["map"]
    assert torch.equal(found, by_loops(label, bounds, 4))
    assert torch.equal(found, by_integral_image(label, bounds, 4))
    sums = found.sum(-1)
    torch.testing.assert_close(sums[sums > 0], torch.ones_like(sums[sums > 0]), atol=2e-7, rtol=0)
    assert 0 < int((sums[0, 0] == 0).sum()) < sums[0, 0].numel()


def test_cells_are_spread_evenly():
    assert cell_places(8, 32).tolist() == [2, 6, 10, 14, 18, 22, 26, 30]
    assert cell_places(4, 32).tolist() == [4, 12, 20, 28]
    assert cell_places(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert cells_per_axis(8, (5, 99)) == [3, 3]
    for number, in_2d, in_3d in ((8, 3, 2), (27, 5, 3), (64, 8, 4), (125, 11, 5), (512, 23, 8)):
        assert cells_per_axis(number, (99, 99)) == [in_2d] * 2
        assert cells_per_axis(number, (99, 99, 99)) == [in_3d] * 3
    assert cells_per_axis(64, (5, 5)) == [5, 5]


@pytest.mark.parametrize(
    ("cell", "stride", "side", "centre", "low", "high"),
    [
        (0, 4, 5, 0.5, 0, 5), (0, 4, 9, 0.5, 0, 7), (3, 4, 5, 0.5, 12, 17), (5, 4, 32, 0.5, 6, 38),
        (5, 4, 23, 0.0, 9, 32),
    ],
)
def test_a_box_lies_around_the_place_at_which_its_cell_looks(cell, stride, side, centre, low, high):
    found = box_bounds(torch.tensor([cell]), 16, 16 * stride, [side], centre)
    assert [int(bound) for bound in found] == [low, high]


def test_a_stride_that_is_not_whole_gives_exact_places():
    # cell 8 of 17 on 35 voxels looks at (35 * 8 + 9) / 17 = 17 exactly
    assert [int(bound) for bound in box_bounds(torch.tensor([8]), 17, 35, [2], 0.5)] == [17, 19]


def off_diagonal():
    """A label of 12 by 10 with objects away from the diagonal, and a map of 6 by 5."""
    label = torch.zeros(1, 1, 12, 10)
    label[..., 1:5, 6:9], label[..., 8:11, 1:4] = 1, 2
    k = torch.arange(90, dtype=torch.float64)
    return label, torch.sin(1 + 0.7 * k + 0.013 * k * k).reshape(1, 3, 6, 5)


def value(label, feature_map, sides):
    cells = LabelBoxes({"map": sides}, 3, 16)(label, {"map": (6, 5)})["map"]
    z = feature_map.flatten(2).mT.gather(1, cells.index[..., None].expand(-1, -1, 3))
    shares = cells.shares.double()
    return float(pdcr(z, z, affinity(shares, shares), 0.5, cells.valid, cells.valid))


@pytest.mark.parametrize(
    ("sides", "expected"),
    [([3], 3.880265958), ([5], 3.813884582), ([7], 3.801222418), ([9], 4.054771409), ([5, 7, 9], 3.889959470)],
)
def test_objects_off_the_diagonal_of_a_non_square_image_are_found_at_their_place(sides, expected):
    assert value(*off_diagonal(), sides) == pytest.approx(expected, abs=1e-7)


def test_the_shares_of_single_boxes_are_right():
    label, _ = off_diagonal()
    cells = LabelBoxes({"map": [3]}, 3, 16)(label, {"map": (6, 5)})["map"]
    rows, columns = cells.index[0] // 5, cells.index[0] % 5
    assert sorted(set(rows.tolist())) == [0, 2, 3, 5]
    assert sorted(set(columns.tolist())) == [0, 1, 3, 4]
    share = {(int(r), int(c)): float(s) for r, c, s in zip(rows, columns, cells.shares[0, 0, :, 1], strict=True)}
    for place, expected in {(0, 3): 2 / 3, (0, 4): 1 / 3, (2, 3): 1 / 3, (2, 4): 1 / 6}.items():
        assert share[place] == pytest.approx(expected, abs=1e-6)


def test_ignored_voxels_count_nowhere():
    label, feature_map = off_diagonal()
    label[..., :2] = 255
    assert value(label, feature_map, [3]) == pytest.approx(3.801399067, abs=1e-7)
    ignored = LabelBoxes({"map": [3]}, 3, 16, ignore_label=2)(off_diagonal()[0], {"map": (6, 5)})["map"]
    assert float(ignored.shares[..., 2].max()) == 0


def test_a_side_per_axis_and_a_meta_tensor_are_taken():
    label = MetaTensor(some_label(8, 12, 10)[:, None])
    cells = LabelBoxes({"map": [[1, 3, 5], 3]}, 4, 8)(label, {"map": (4, 6, 5)})["map"]
    sizes = zip((4, 6, 5), (8, 12, 10), ([1, 3], [3, 3], [5, 3]), strict=True)
    bounds = [box_bounds(cell_places(2, own), own, extent, sides, 0.5) for own, extent, sides in sizes]
    assert torch.equal(cells.shares, by_loops(label[:, 0].as_tensor(), bounds, 4))
    assert type(cells.shares) is torch.Tensor


@pytest.mark.parametrize("sides", [[9, 5], [5, 9]])
def test_half_of_the_cells_are_drawn_where_there_is_foreground(sides):
    label = torch.zeros(3, 1, 64, 64)
    label[:2, :, 40:48, 8:16] = 1
    label[:, :, :, 40:] = 255
    boxes, small = LabelBoxes({"map": sides}, 2, 64, foreground_share=0.5), sides.index(5)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(boxes(label, {"map": (32, 32)})["map"])
    cells = drawn[0]
    assert cells.index.shape == (3, 64)
    assert all(len(set(row.tolist())) == 64 for row in cells.index)
    inside = (cells.shares[:, small, :, 1] > 0).sum(1)
    assert inside[:2].min() >= 32
    assert 0 < int(cells.valid.sum()) < cells.valid.numel()
    assert torch.equal(cells.valid, cells.shares.sum(-1) > 0)
    assert inside[2] == 0
    assert torch.equal(cells.index, drawn[1].index)
    assert not torch.equal(cells.index, drawn[2].index)
    whole = LabelBoxes({"map": sides}, 2, 10**6)(label, {"map": (32, 32)})["map"]
    assert torch.equal(cells.shares, whole.shares.gather(2, cells.index[:, None, :, None].expand(-1, 2, -1, 2)))


def test_neither_cells_nor_sizes_cost_another_operation():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            Count.calls += 1
            return function(*args, **(kwargs or {}))

    label, counted = some_label(32, 32)[:, None], []
    for sides, number in (([5], 4), ([5, 7, 9, 11], 256)):
        boxes, Count.calls = LabelBoxes({"map": sides}, 4, number), 0
        with Count():
            boxes(label, {"map": (16, 16)})
        counted.append(Count.calls)
    assert counted[0] == counted[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sides": {"map": []}}, "each tap one or more sides"),
        ({"sides": {}}, "each tap one or more sides"),
        ({"sides": {"map": [0]}}, "sides of at least 1"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"centre": 1.5}, "centre 0 to 1"),
        ({"foreground_share": 2.0}, "foreground_share must be 0 to 1, got 2.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LabelBoxes(**{"sides": {"map": [3]}, "num_classes": 3, **settings})


def test_a_box_larger_than_the_label_is_refused():
    with pytest.raises(ValueError, match=r"side 65 of the tap 'map' is larger than the label \(64, 64\), .*roi_size"):
        LabelBoxes({"map": [5, 65]}, 2)(torch.zeros(1, 1, 64, 64), {"map": (32, 32)})
    with pytest.raises(ValueError, match=r"box side 20 of the tap 'map' is larger than the label \(64, 16\)"):
        LabelBoxes({"map": [[40, 20]]}, 2)(torch.zeros(1, 1, 64, 16), {"map": (32, 8)})
    with pytest.raises(ValueError, match="one number, or one per axis of a 2D label"):
        LabelBoxes({"map": [[5, 5, 5]]}, 2)(torch.zeros(1, 1, 64, 64), {"map": (32, 32)})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float32])
def test_autocast_and_the_type_of_the_label_change_no_count(dtype):
    label, boxes = some_label(40, 40, 40)[:, None], LabelBoxes({"map": [39]}, 4, 8)
    plain = boxes(label, {"map": (20, 20, 20)})["map"].shares
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(boxes(label.to(dtype), {"map": (20, 20, 20)})["map"].shares, plain)

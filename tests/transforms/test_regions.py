import math

import pytest
import torch
import torch.nn.functional as F

from medcl_monai.transforms.regions import draw_regions, into_view, sample_regions
from medcl_monai.transforms.views import apply_warp, random_crop_warp, resample

F64 = torch.float64


def shifted(scale, *shift):
    matrix = scale * torch.eye(len(shift), dtype=F64)
    return torch.cat([matrix, torch.tensor(shift, dtype=F64)[:, None]], 1)[None]


def turned(angle, dims=2):
    matrix = torch.eye(dims, dtype=F64)
    matrix[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix[0] *= -1  # a flip
    return torch.cat([0.8 * matrix, torch.full((dims, 1), 0.05, dtype=F64)], 1)[None]


def test_equal_warps_give_equal_points():
    warp = turned(0.3).expand(3, -1, -1)
    first, second, valid = draw_regions(warp, warp, 20)
    assert first.shape == (3, 20, 2)
    torch.testing.assert_close(first, second, atol=1e-12, rtol=0)
    assert valid.all()


def test_shifted_views_give_shifted_points():
    first, second, valid = draw_regions(shifted(0.5, 0.1, -0.2), shifted(0.5, -0.1, 0.2), 20)
    torch.testing.assert_close(second - first, torch.tensor([0.4, -0.8], dtype=F64).expand_as(first))
    assert valid.any()


@pytest.mark.parametrize("dims", [2, 3])
def test_points_are_the_same_place_of_the_sample(dims):
    warps = turned(0.5, dims), shifted(0.9, *[0.02] * dims)
    first, second, _ = draw_regions(*warps, 30)
    torch.testing.assert_close(apply_warp(warps[0], first), apply_warp(warps[1], second), atol=1e-12, rtol=0)
    torch.testing.assert_close(into_view(warps[0], apply_warp(warps[0], first)), first, atol=1e-12, rtol=0)


def test_views_without_a_common_place_have_no_valid_region_and_valid_ones_come_first():
    assert not draw_regions(shifted(0.2, -0.7, -0.7), shifted(0.2, 0.7, 0.7), 20)[2].any()
    halves = draw_regions(shifted(0.5, -0.25, 0.0), shifted(0.5, 0.25, 0.0), 20)[2]
    assert halves.all()  # half of the 80 drawn are common: enough for 20


def test_air_is_no_region():
    warp = shifted(1.0, 0.0, 0.0)
    foreground = torch.zeros(1, 1, 8, 8, dtype=F64)
    foreground[..., :4] = 1
    first, _, valid = draw_regions(warp, warp, 12, foreground_1=foreground)
    assert valid.any()
    assert float(first[valid][:, 0].max()) < 0.13  # the last spatial axis comes first
    assert not draw_regions(warp, warp, 12, foreground_1=foreground * 0)[2].any()


@pytest.mark.parametrize("size", [(5, 7), (4, 5, 6)])
def test_sampling_at_the_centres_of_cells_returns_the_map(size):
    values = torch.randn(2, 3, *size)
    axes = [(2 * torch.arange(side) + 1) / side - 1 for side in size]
    points = torch.cartesian_prod(*axes).flip(1).expand(2, -1, -1)
    torch.testing.assert_close(sample_regions(values, points), values.flatten(2).mT, atol=1e-6, rtol=0)


def test_matched_points_show_the_same_content_and_equal_coordinates_do_not():
    axis = (2 * torch.arange(64) + 1) / 64 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    image = (torch.sin(3 * x + 1) + torch.cos(4 * y - x / 2)).expand(16, 1, 64, 64)
    warps = [random_crop_warp(16, (64, 64), (0.2, 1.0), 4 / 3, 15.0) for _ in range(2)]
    views = [resample(image, warp) for warp in warps]
    first, second, valid = draw_regions(*warps, 50)
    inside = valid & (apply_warp(warps[0], first).abs() < 0.95).all(-1)
    here, there = sample_regions(views[0], first), sample_regions(views[1], second)
    wrong = sample_regions(views[1], first)
    assert float((here - there)[inside].abs().mean()) < 0.01
    assert float((here - wrong)[inside].abs().mean()) > 0.2


@pytest.mark.parametrize("size", [(48, 64), (20, 30, 40)])
def test_a_crop_has_its_share_of_the_sample_and_lies_inside(size):
    warp = random_crop_warp(500, size, (0.2, 0.8), 4 / 3, 0.0).double()
    sides = warp[:, :, :-1].diagonal(dim1=1, dim2=2)
    share = sides.prod(1)
    assert float(share.min()) > 0.19
    assert float(share.max()) < 0.81
    assert float((sides.amax(1) / sides.amin(1)).max()) < 4 / 3 + 1e-6
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * len(size))
    assert float(apply_warp(warp, corners.expand(500, -1, -1)).abs().max()) <= 1 + 1e-6
    for bad in ((0.0, 1.0), (0.5, 1.2)):
        with pytest.raises(ValueError, match="ascending, above 0 to 1"):
            random_crop_warp(1, size, bad, 1.0, 0.0)


def test_a_turn_is_one_of_the_pixel_grid():
    size = (32, 64)
    warp = random_crop_warp(1, size, (0.25, 0.25), 1.0, 90.0)
    half = torch.tensor([32.0, 16.0])
    pixels = warp[0, :, :2] * half[:, None]  # pixels per view unit
    wide, high = pixels[:, 0].norm(), pixels[:, 1].norm()
    assert float(wide / high) == pytest.approx(2.0, rel=1e-5)
    assert float(F.cosine_similarity(pixels[:, 0], pixels[:, 1], dim=0)) == pytest.approx(0, abs=1e-5)


def test_a_warp_that_cannot_be_inverted_is_named():
    with pytest.raises(ValueError, match="a warp cannot be inverted"):
        draw_regions(shifted(1.0, 0.0, 0.0), shifted(0.0, 0.0, 0.0), 4)


@pytest.mark.parametrize("numbers", [(0, 4.0), (5, 0.5)])
def test_impossible_numbers_are_named(numbers):
    with pytest.raises(ValueError, match="must be at least 1"):
        draw_regions(shifted(1.0, 0.0, 0.0), shifted(1.0, 0.0, 0.0), *numbers)

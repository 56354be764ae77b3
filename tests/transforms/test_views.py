import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medcl_monai.transforms.views import apply_warp, jitter, random_warp, resample

many = settings(deadline=None, derandomize=True, max_examples=20)


def blob(size, centre):
    """A smooth bump at `centre`, in [-1, 1], last spatial axis first."""
    axes = [(2 * torch.arange(side) + 1) / side - 1 for side in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
    pixels = torch.tensor(size[::-1]) / 2
    return torch.exp(-(((grid - centre) * pixels) ** 2).sum(-1) / 18)[None, None]


def peak(view):
    """Where the bump is, by its centre of mass, in [-1, 1], last spatial axis first."""
    size = view.shape[2:]
    axes = [(2 * torch.arange(side) + 1) / side - 1 for side in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
    weight = view[0, 0].clamp(min=0)
    return (grid * weight[..., None]).flatten(0, -2).sum(0) / weight.sum()


@many
@given(seed=st.integers(0, 10**6), size=st.sampled_from([(64, 64), (48, 80), (40, 32, 48)]))
def test_the_warp_says_where_the_content_went(seed, size):
    generator = torch.Generator().manual_seed(seed)
    warp = random_warp(1, size, 20.0, (0.8, 1.25), 0.1, generator)
    place = (torch.rand(1, 1, len(size), generator=generator) - 0.5) * 0.6  # in the view
    sample = blob(size, apply_warp(warp, place)[0, 0])
    torch.testing.assert_close(peak(resample(sample, warp)), place[0, 0], atol=0.03, rtol=0)


def test_shapes_keep_their_proportions_in_samples_that_are_not_square():
    warp = random_warp(20, (48, 96), 45.0, (1.0, 1.0), 0.0)
    half = torch.tensor([48.0, 24.0])
    pixels = half[:, None] * warp[:, :, :2] / half
    torch.testing.assert_close(pixels @ pixels.mT, torch.eye(2).expand(20, 2, 2), atol=1e-5, rtol=0)


def test_no_change_gives_the_sample_and_outside_is_the_sample_s_minimum():
    sample = torch.randn(3, 2, 16, 20)
    still = random_warp(3, (16, 20), 0.0, (1.0, 1.0), 0.0)
    torch.testing.assert_close(resample(sample, still), sample, atol=1e-5, rtol=0)
    away = still.clone()
    away[:, :, 2] = 5.0
    least = sample.amin((2, 3), keepdim=True).expand_as(sample)
    torch.testing.assert_close(resample(sample, away), least)


def test_views_depend_on_the_seed_alone():
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    warps = [random_warp(4, (32, 32), 20.0, (0.8, 1.25), 0.1, generator) for generator in generators]
    assert torch.equal(warps[0], warps[1])
    assert not torch.equal(warps[0], warps[2])


def test_magnification_stays_in_its_range_and_enlarges():
    warp = random_warp(500, (32, 32), 180.0, (0.5, 2.0), 0.0)
    scale = 1 / torch.linalg.det(warp[:, :, :2]).sqrt()
    assert 0.5 <= float(scale.min()) < 0.6
    assert 1.8 < float(scale.max()) <= 2.0
    assert float(scale.log().mean().abs()) < 0.1


def test_jitter_is_about_the_mean_and_0_returns_the_sample_itself():
    x = torch.randn(200, 1, 8, 8) + 3
    assert jitter(x, 0.0) is x
    y = jitter(x, 0.2)
    contrast = y.flatten(1).std(1) / x.flatten(1).std(1)
    shift = y.flatten(1).mean(1) - x.flatten(1).mean(1)
    assert 0.8 <= float(contrast.min()) < 0.85
    assert 1.15 < float(contrast.max()) <= 1.2001
    assert float(shift.abs().max()) <= 0.2001


@pytest.mark.parametrize(
    ("size", "scale", "match"),
    [((8,), (1.0, 1.0), "2 or 3 sides"), ((8, 8), (0.0, 1.0), "above 0"), ((8, 8), (2.0, 1.0), "ascending")],
)
def test_impossible_ranges_are_named(size, scale, match):
    with pytest.raises(ValueError, match=match):
        random_warp(1, size, 1.0, scale, 0.0)
    with pytest.raises(ValueError, match="amount must be 0 to 1"):
        jitter(torch.zeros(1, 1, 2, 2), 1.5)

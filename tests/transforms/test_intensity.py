import pytest
import torch
from scipy.ndimage import gaussian_filter

from medcl_monai.transforms.intensity import blur, contrast_and_shift, gamma, noise


@pytest.mark.parametrize("change", [
    lambda x: gamma(x, 0.5),
    lambda x: contrast_and_shift(x, 0.4, 0.2),
    lambda x: noise(x, 0.08),
    lambda x: blur(x, 0.5),
])
@pytest.mark.parametrize("size", [(12, 9), (7, 6, 8)])
def test_changes_are_seeded_and_differ_from_sample_to_sample(change, size):
    x = torch.rand(size).expand(6, 2, *size)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(change(x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert found[0].shape == x.shape
    assert len({round(float(sample.double().std()), 9) for sample in found[0]}) > 1


def test_nothing_is_changed_by_amounts_of_0():
    x = torch.rand(2, 1, 8, 8)
    for unchanged in (gamma(x, 0.0), noise(x, 0.0), blur(x, 0.0)):
        assert unchanged is x
    torch.testing.assert_close(contrast_and_shift(x, 0.0, 0.0), x)


def test_contrast_keeps_the_mean_and_shift_moves_it():
    x = torch.rand(50, 1, 8, 8)
    means = x.flatten(1).mean(1)
    torch.testing.assert_close(contrast_and_shift(x, 0.4, 0.0).flatten(1).mean(1), means)
    moved = contrast_and_shift(x, 0.0, 0.2).flatten(1).mean(1) - means
    assert float(moved.abs().max()) <= 0.2
    assert float(moved.std()) > 0.05


@pytest.mark.parametrize("size", [(24, 20), (20, 16, 18)])
def test_a_blur_is_the_gaussian_filter_of_scipy(size):
    x = torch.rand(3, 2, *size)
    found = blur(x, 1.0, (1.5, 1.5))
    axes = tuple(range(2, x.ndim))
    expected = gaussian_filter(x.numpy(), 1.5, axes=axes, mode="nearest", radius=5)
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-4, rtol=0)


def test_gamma_keeps_0_and_1():
    x = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)
    found = gamma(x, 0.5).flatten()
    assert found[[0, 2]].tolist() == [0, 1]
    assert float(found[1]) != 0.5

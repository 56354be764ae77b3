"""The restoration loss: known values, and what is scored."""

import pytest
import torch

from medcl_monai.losses.restoration import RestorationLoss, restoration
from medcl_monai.transforms.corruption import PatchSwap


@pytest.fixture
def swapped():
    """A 16 x 16 image, the same with a patch of 4 at (1, 2) swapped with the one at (9, 10), and where it changed."""
    k = torch.arange(256, dtype=torch.float64)
    image = torch.sin(1 + 0.7 * k + 0.013 * k**2).view(1, 1, 16, 16)
    return image, *PatchSwap(4, 1).apply(image, torch.tensor([[[1, 2], [9, 10]]]))


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, 0.129287988),
        ({"unchanged_weight": 0.0}, 1.034303905),
        ({"unchanged_weight": 0.1}, 0.608414061),
        ({"exponent": 1.0}, 0.112789135),
        ({"exponent": 1.0, "unchanged_weight": 0.0}, 0.902313082),
    ],
)
def test_known_values_of_a_network_that_copies_its_input(swapped, knobs, expected):
    image, corrupted, changed = swapped
    output, target = {"restored": corrupted}, {"image": image, "changed": changed}
    assert float(RestorationLoss(**knobs)(output, target)["restoration"]) == pytest.approx(expected, rel=1e-8)
    assert float(RestorationLoss(3.0, **knobs)(output, target)["restoration"]) == pytest.approx(3 * expected, rel=1e-8)
    assert float(restoration(image, image, changed)) == 0


def test_channels_and_samples_count_alike():
    torch.manual_seed(0)
    image, restored = torch.rand(2, 3, 4, 4, 4).double(), torch.rand(2, 3, 4, 4, 4).double()
    changed = torch.rand(2, 1, 4, 4, 4) < 0.3
    weights = torch.where(changed, 1.0, 0.2).double()
    expected = (weights * (restored - image) ** 2).sum() / (3 * weights.sum())
    torch.testing.assert_close(restoration(restored, image, changed, 0.2), expected)


def test_where_nothing_counts_the_loss_is_zero_with_a_finite_gradient():
    restored = torch.rand(2, 1, 8, 8, requires_grad=True)
    value = restoration(restored, torch.rand(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.bool), 0.0)
    value.backward()
    assert value.item() == 0
    assert bool((restored.grad == 0).all())


def test_autocast_changes_nothing_and_a_weight_of_zero_leaves_the_term_out():
    image, restored = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    changed = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        inside = restoration(restored, image, changed)
    assert torch.equal(inside, restoration(restored, image, changed))
    assert RestorationLoss(0.0)({}, {}) == {}


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"unchanged_weight": -0.1}, {"exponent": 0.0}])
def test_impossible_settings_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} "):
        RestorationLoss(**wrong)

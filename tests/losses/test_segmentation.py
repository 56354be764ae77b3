import pytest
import torch
import torch.nn.functional as F

from medcl_monai.losses.segmentation import SegmentationLoss, class_weights


def test_rare_classes_weigh_more_and_the_mean_weight_of_a_voxel_is_one():
    shares = torch.tensor([0.9, 0.09, 0.01])
    weights = class_weights(shares, 0.5)
    assert float((weights * shares).sum()) == pytest.approx(1.0)
    assert float(weights[2] / weights[0]) == pytest.approx((0.9 / 0.01) ** 0.5)
    assert torch.equal(class_weights(shares, 0.0), torch.ones(3))


def test_a_perfect_prediction_costs_nothing_and_power_0_is_plain_cross_entropy():
    label = torch.randint(0, 3, (2, 1, 8, 8))
    loss = SegmentationLoss(torch.tensor([0.5, 0.3, 0.2]), class_weight_power=0.0)
    terms = loss(F.one_hot(label[:, 0], 3).movedim(-1, 1) * 100.0, label)
    assert float(sum(terms.values())) < 1e-4
    logits = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(loss(logits, label)["cross_entropy"], F.cross_entropy(logits, label[:, 0]))


def test_a_label_outside_the_classes_is_named():
    loss = SegmentationLoss(torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="0 to 4 are outside 0 to 1"):
        loss(torch.randn(1, 2, 2, 2), torch.tensor([[[[0, 1], [4, 0]]]]))
    with pytest.raises(ValueError, match="above 0"):
        class_weights(torch.tensor([1.0, 0.0]), 0.5)

import math

import pytest
import torch
from monai.metrics import compute_hausdorff_distance

from medcl_monai.diagnostics.scores import (
    class_counts,
    class_mean_accuracy,
    dice,
    mean_iou,
    overall_accuracy,
    surface_distances,
)


@pytest.fixture
def pairs():
    """Two cases of 4 x 4 pixels: label and prediction."""
    label_a, prediction_a, label_b, empty = (torch.zeros(4, 4, dtype=torch.int64) for _ in range(4))
    label_a[:2, :2], prediction_a[:2, :3], label_b[3, 3] = 1, 1, 1
    return (label_a, prediction_a), (label_b, empty)


SCORES = (lambda counts: dice(counts)[0], mean_iou, overall_accuracy, class_mean_accuracy)


def test_each_case_and_all_counts_together_by_hand(pairs):
    counts = [class_counts(*pair, 2) for pair in pairs]
    found = [[float(score(part)) for score in SCORES] for part in (*counts, sum(counts))]
    assert found[0] == pytest.approx([0.8, 0.75, 0.875, 0.916667], abs=1e-6)
    assert found[1] == pytest.approx([0.0, 0.46875, 0.9375, 0.5], abs=1e-6)
    assert found[2] == pytest.approx([0.727273, 0.732143, 0.90625, 0.862963], abs=1e-6)


def test_distances_are_in_mm_and_absent_where_a_structure_is_missing(pairs):
    (label, prediction), (other, empty) = ([part == 1 for part in pair] for pair in pairs)
    assert surface_distances(label, prediction, (1.0, 1.0)).hausdorff == 1.0
    assert surface_distances(label, prediction, (1.0, 2.0)).hausdorff == 2.0
    assert surface_distances(other, empty, (1.0, 1.0)) is None
    assert surface_distances(empty, other, (1.0, 1.0)) is None


@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")  # MONAI of itself
def test_distances_are_monai_s():
    torch.manual_seed(0)
    maps = [torch.nn.functional.avg_pool3d(torch.rand(1, 1, 20, 22, 18), 5)[0, 0] > 0.5 for _ in range(2)]
    label, prediction = (part.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2) for part in maps)
    spacing = (1.5, 1.0, 3.0)
    found = surface_distances(label, prediction, spacing)
    for percentile, ours in ((None, found.hausdorff), (95, found.hausdorff95)):
        theirs = compute_hausdorff_distance(
            prediction[None, None].float(), label[None, None].float(), include_background=True, spacing=list(spacing),
            percentile=percentile,
        )
        assert ours == pytest.approx(float(theirs), rel=1e-5)


def test_classes_that_do_not_occur_are_left_out():
    label = torch.tensor([0, 0, 1, 1])
    counts = class_counts(label, label, 4)
    assert [float(value) for value in dice(counts)[:1]] == [1.0]
    assert all(math.isnan(value) for value in dice(counts)[1:].tolist())
    assert float(mean_iou(counts)) == float(class_mean_accuracy(counts)) == 1.0
    predicted = torch.tensor([0, 0, 1, 3])  # class 3 occurs in the prediction alone: it counts for IoU
    counts = class_counts(label, predicted, 4)
    assert float(mean_iou(counts)) == pytest.approx((1 + 0.5 + 0) / 3)
    assert float(class_mean_accuracy(counts)) == pytest.approx((1 + 0.5) / 2)
    assert dice(counts).tolist()[2] == 0.0

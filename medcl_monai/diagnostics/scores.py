"""Scores of a segmentation, from counts of voxels and from the distances of surfaces.

``counts[g, p]`` is the number of voxels of class g in the label that the prediction gives class p; class 0 is the
background. Counts of several cases may be added. Scores of nothing (no voxel in label and prediction) are NaN.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from monai.metrics.utils import get_mask_edges, get_surface_distance
from torch import Tensor


def class_counts(
    label: Int[Tensor, "*size"], prediction: Int[Tensor, "*size"], classes: int
) -> Int[Tensor, "classes classes"]:
    """Count the voxels of each pair of classes in a label map and a prediction."""
    pairs = label.flatten().long() * classes + prediction.flatten().long()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def dice(counts: Int[Tensor, "classes classes"]) -> Float[Tensor, " structures"]:
    """Return 2 TP / (P + G) of each structure (DSC), background left out."""
    true, of_label, of_prediction = _marginals(counts)
    return (2 * true / (of_label + of_prediction))[1:]


def mean_iou(counts: Int[Tensor, "classes classes"]) -> Float[Tensor, ""]:
    """Return TP / (P + G - TP), as the mean over the classes that occur, background included (mIoU)."""
    true, of_label, of_prediction = _marginals(counts)
    return (true / (of_label + of_prediction - true)).nanmean()


def overall_accuracy(counts: Int[Tensor, "classes classes"]) -> Float[Tensor, ""]:
    """Return the share of all voxels whose class is right; most of these voxels are background."""
    true, of_label, _ = _marginals(counts)
    return true.sum() / of_label.sum()


def class_mean_accuracy(counts: Int[Tensor, "classes classes"]) -> Float[Tensor, ""]:
    """Return the share of a class's voxels whose class is right, as the mean over the classes of the label."""
    true, of_label, _ = _marginals(counts)
    return (true / of_label).nanmean()


class Distances(NamedTuple):
    """Distances in mm between the surface of a structure in the label and in the prediction.

    Attributes:
        hausdorff: largest distance of a point of one surface from the other surface (HD).
        hausdorff95: the larger of the two 95th percentiles of these distances, one from each surface (HD95).
    """

    hausdorff: float
    hausdorff95: float


def surface_distances(
    label: Bool[Tensor, "*size"], prediction: Bool[Tensor, "*size"], spacing: Sequence[float]
) -> Distances | None:
    """Measure the distances between two surfaces; None if label or prediction is empty.

    Args:
        label: the structure in the label.
        prediction: the structure in the prediction.
        spacing: distance of two voxels along each axis, in mm.
    """
    if not bool(label.any()) or not bool(prediction.any()):
        return None
    edges = get_mask_edges(prediction, label)
    both = [
        torch.as_tensor(get_surface_distance(*pair, spacing=list(spacing))).double() for pair in (edges, edges[::-1])
    ]
    return Distances(*(max(float(part.quantile(share)) for part in both) for share in (1.0, 0.95)))


def _marginals(counts: Int[Tensor, "classes classes"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return right voxels, voxels of the label and voxels of the prediction, of each class, in fp64."""
    counts = counts.double()
    return counts.diagonal(), counts.sum(1), counts.sum(0)

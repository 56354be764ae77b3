"""Shares of the classes among the voxels of the training labels."""

import logging

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medcl_monai.data.slices import SliceDataset
from medcl_monai.knobs import knob_types
from medcl_monai.transforms.postprocessing import unknown_label

logger = logging.getLogger(__name__)


@knob_types
def label_shares(dataset: SliceDataset, num_classes: int) -> Float[Tensor, " classes"]:
    """Compute the share of each class among the voxels of all labels.

    A class without any voxel counts as one voxel, so every share is above 0.

    Args:
        dataset: labelled samples.
        num_classes: number of classes, background included; every label value must be below this number.

    Raises:
        ValueError: an entry has no label; or a label holds a value of `num_classes` or more, and the error names its
            file.
    """
    if any("label" not in entry for entry in dataset.data):
        raise ValueError("label_shares: entries without a label cannot be trained on")
    counts = dataset.label_counts()
    for entry, count in zip(dataset.data, counts, strict=True):
        if outside := np.nonzero(count[num_classes:])[0].tolist():
            raise ValueError(unknown_label(entry["label"], outside[0] + num_classes, num_classes))
    voxels = np.sum(counts, axis=0)[:num_classes]
    if absent := np.nonzero(voxels == 0)[0].tolist():
        logger.warning(
            "no voxel of the training labels has the values %s: they cannot be learned; are the structures those of "
            "these labels?", absent,
        )
    voxels = np.maximum(voxels, 1)
    return torch.tensor(voxels / voxels.sum(), dtype=torch.float32)

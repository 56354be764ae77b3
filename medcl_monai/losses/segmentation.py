"""Dice and class-weighted cross entropy."""

import torch.nn.functional as F
from jaxtyping import Float
from monai.losses import DiceLoss
from torch import Tensor, nn

from medcl_monai.knobs import knob_types
from medcl_monai.precision import full_precision


class SegmentationLoss(nn.Module):
    """Overlap of every structure over the whole batch, and cross entropy in which rare classes count more.

    Dice is MONAI's, over the batch and with background; the weights of the cross entropy are share^-power, without
    which small structures are not learned from few labels.

    Args:
        shares: of each class among the training labels' voxels, above 0, background first.
        class_weight_power: 0 (all classes alike) and up.
        dice_weight: of the Dice term.
        cross_entropy_weight: of the cross-entropy term.

    Raises:
        ValueError: a share is not above 0; in `forward`: a label value outside the classes.
    """

    @knob_types
    def __init__(
        self,
        shares: Float[Tensor, " classes"],
        class_weight_power: float = 0.5,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights(shares, class_weight_power))
        self.dice_weight, self.cross_entropy_weight = dice_weight, cross_entropy_weight
        self.dice = DiceLoss(include_background=True, to_onehot_y=True, softmax=True, batch=True)

    @full_precision
    def forward(
        self, prediction: Float[Tensor, "batch classes *size"], label: Tensor
    ) -> dict[str, Float[Tensor, ""]]:
        """Weighted terms ``dice`` and ``cross_entropy`` of logits (B, K, *S) and a label map (B, 1, *S)."""
        classes = prediction.shape[1]
        target = label.long()
        if target.device.type == "cpu" and not 0 <= int(target.min()) <= int(target.max()) < classes:
            raise ValueError(
                f"label values {int(target.min())} to {int(target.max())} are outside 0 to {classes - 1} (structures)"
            )
        cross_entropy = F.cross_entropy(prediction, target[:, 0], weight=self.class_weights.to(prediction))
        dice = self.dice(prediction, target)
        return {"dice": self.dice_weight * dice, "cross_entropy": self.cross_entropy_weight * cross_entropy}


def class_weights(shares: Float[Tensor, " classes"], power: float) -> Float[Tensor, " classes"]:
    """Weights share^-power, scaled so that their mean over voxels is 1.

    Raises:
        ValueError: a share is not above 0, or `power` is negative.

    Example:
        >>> import torch
        >>> class_weights(torch.tensor([0.64, 0.36]), 0.5)
        tensor([0.8929, 1.1905])
    """
    if not bool((shares > 0).all()) or power < 0:
        raise ValueError(f"class shares must be above 0 and power 0 or more, got {shares.tolist()} and {power}")
    weights = shares.float() ** -power
    return weights / (weights * shares / shares.sum()).sum()

"""Dice loss and class-weighted cross entropy."""

import torch.nn.functional as F
from jaxtyping import Float
from monai.losses import DiceLoss
from torch import Tensor, nn

from medcl_monai.knobs import knob_types
from medcl_monai.precision import full_precision


class SegmentationLoss(nn.Module):
    """Computes Dice over the whole batch, and a cross entropy in which rare classes count more.

    Dice is MONAI's `DiceLoss`, computed over the batch and with background. The class weights of the cross entropy are
    share^-power; without class weights, small structures are not learned from few labels.

    Args:
        shares: share of each class among the voxels of the training labels, background first; above 0.
        class_weight_power: exponent p of the class weights; the cross entropy weights each class by share^-p, where
            share is the class's share of the voxels of the training labels; no unit, 0 or more. 0: all classes have the
            same weight.
        dice_weight: weight of the Dice term in the sum that is minimised; no unit.
        cross_entropy_weight: weight of the cross-entropy term in the sum that is minimised; no unit.

    Raises:
        ValueError: a share is not above 0, or `class_weight_power` is negative; in `forward`, on the CPU: a label value
            outside the classes.
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
        """Return the weighted terms ``dice`` and ``cross_entropy`` of logits (B, K, *S) and a label map (B, 1, *S)."""
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
    """Compute the weights share^-power, scaled so that their mean over all voxels is 1.

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

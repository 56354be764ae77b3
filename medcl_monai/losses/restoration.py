"""The restoration loss: how far a restored image is from the image before its corruption."""

from collections.abc import Mapping

from jaxtyping import Bool, Float
from torch import Tensor

from medcl_monai.distributed import mean_over_processes
from medcl_monai.knobs import knob_types
from medcl_monai.losses.terms import TermLoss
from medcl_monai.precision import full_precision


class RestorationLoss(TermLoss):
    """Pulls the restored image towards the image as it was before the corruption.

    Chen et al. 2019 (context restoration, https://doi.org/10.1016/j.media.2019.101539) score all pixels;
    `unchanged_weight` 0 scores the changed pixels alone, as Xie et al. 2022 (SimMIM, https://arxiv.org/abs/2111.09886).

    Args:
        weight: weight of this term in the sum that is minimised; no unit, 0 or more. 0: the term is left out.
        unchanged_weight: weight of a pixel that the corruption did not change, relative to a changed pixel; no unit, 0
            or more.
        exponent: exponent of the absolute differences, above 0; 2: squared error, 1: absolute error.

    Raises:
        ValueError: a number is out of range.
    """

    @knob_types
    def __init__(self, weight: float = 1.0, unchanged_weight: float = 1.0, exponent: float = 2.0) -> None:
        super().__init__()
        if min(weight, unchanged_weight) < 0 or not exponent > 0:
            raise ValueError(
                f"RestorationLoss: weight {weight} and unchanged_weight {unchanged_weight} must be 0 or more, "
                f"exponent {exponent} above 0"
            )
        self.weight, self.unchanged_weight, self.exponent = weight, unchanged_weight, exponent

    def forward(self, output: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted term ``restoration``; if the weight is 0, no term is returned.

        Args:
            output: ``restored`` (B, C, *S).
            target: ``image`` (B, C, *S), before the corruption; ``changed`` (B, 1, *S), where the image changed.
        """
        if self.weight == 0:
            return {}
        images = output["restored"], target["image"], target["changed"]
        return {"restoration": self.weight * restoration(*images, self.unchanged_weight, self.exponent)}


@full_precision
def restoration(
    restored: Float[Tensor, "batch channels *size"],
    image: Float[Tensor, "batch channels *size"],
    changed: Bool[Tensor, "batch 1 *size"],
    unchanged_weight: float = 1.0,
    exponent: float = 2.0,
) -> Float[Tensor, ""]:
    r"""Compute the weighted mean of the differences, over the pixels of all samples and processes.

    .. math:: L = \frac{\sum_u \omega_u\, |r_u - x_u|^p}{C \sum_u \omega_u},\quad
        \omega_u = 1 \text{ where changed},\ \text{unchanged\_weight elsewhere}

    The computation runs outside of autocast, in fp32 at least. If no pixel has a weight, the loss is 0.

    Args:
        restored: the network's restoration r.
        image: the image x before the corruption.
        changed: where the corruption changed the image.
        unchanged_weight: weight ω of the other pixels.
        exponent: p.
    """
    difference = (restored - image.to(restored)).abs()
    error = difference.square() if exponent == 2 else difference.pow(exponent)
    weights = changed.to(error) + unchanged_weight * (~changed).to(error)
    return mean_over_processes(error.mean(1, keepdim=True), weights)

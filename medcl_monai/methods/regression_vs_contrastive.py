"""Regression against contrast: a network learns to restore corrupted slices, or to tell slabs apart, or both.

L. Umapathy, Z. Fu, R. Philip, D. Martin, M. Altbach, A. Bilgin, Learning to segment with limited annotations:
Self-supervised pretraining with regression and contrastive loss in MRI, arXiv 2205.13109 (2022). Only the abstract is
public; what it leaves open is settled here as docs/methods/regression_vs_contrastive.md says.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.networks.blocks import Convolution
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from medcl_monai.knobs import knob_types
from medcl_monai.losses.restoration import RestorationLoss
from medcl_monai.losses.slab_contrast import SlabContrastiveLoss
from medcl_monai.losses.terms import TermLoss
from medcl_monai.methods.base import PretrainingNetwork, Watched, names_beginning_with
from medcl_monai.networks.encode import decode, encode
from medcl_monai.networks.heads import pooled, projector
from medcl_monai.networks.unet import DECODER, ENCODER, STAGES, spatial_dims, widths
from medcl_monai.transforms.corruption import BlockMask, Corruption, PatchSwap
from medcl_monai.transforms.intensity import contrast_and_shift
from medcl_monai.transforms.views import random_crop_warp, resample

VIEWS = ("view_1", "view_2", "view_3")


class RegressionContrast(PretrainingNetwork):
    """One U-Net with two heads: a restorer behind the decoder, and a projector behind the encoder.

    The restorer gives back the slice of which the network sees a corrupted form; the projector embeds clean views of
    the slice. Each branch can be left out, which leaves the two arms that the paper compares.

    Args:
        backbone: MONAI's BasicUNet, with norm layers that treat each sample by itself, such as group norm.
        restoration: whether the network restores corrupted slices, which trains encoder and decoder.
        contrast: whether the network embeds views, which trains the encoder.
        projection_dim: number of dimensions of the embeddings, at least 1.
        projector_width: width of the projector's hidden layer, in channels, at least 1.
        pool_size: the last map is averaged to this number of cells along each axis before the projector, at least 1; 1:
            the mean over all positions.
        freeze_encoder: whether the encoder keeps its values and the decoder alone learns to restore, in a second stage
            after an encoder was loaded.

    Raises:
        ValueError: both branches are off, a number is out of range, the encoder is frozen although it would have to
            learn the contrast, or the backbone has batch norm; in `forward`: a side of the images is below 16.
    """

    @knob_types
    def __init__(
        self,
        backbone: BasicUNet,
        restoration: bool = True,
        contrast: bool = True,
        projection_dim: int = 128,
        projector_width: int = 1024,
        pool_size: int = 2,
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        _check(backbone, restoration, contrast, (projection_dim, projector_width, pool_size), freeze_encoder)
        self.backbone, self.pool_size, self.freeze_encoder = backbone, pool_size, freeze_encoder
        self.dims, channels = spatial_dims(backbone), backbone.conv_0.conv_0.conv.in_channels
        width = widths(backbone)[0] * pool_size**self.dims
        self.projector = projector(width, projector_width, projection_dim, bias=False) if contrast else None
        self.restorer = (
            Convolution(self.dims, widths(backbone)[STAGES], channels, kernel_size=1, conv_only=True)
            if restoration else None
        )
        self.freeze_untrained()

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Restore the corrupted slice, and embed the views.

        Args:
            views: ``corrupted`` for the restoration; ``view_1``, ``view_2``, ``view_3`` for the contrast, each
                (B, C, *S). Views of a branch that is off are not read.

        Returns:
            ``restored`` (B, C, *S); the embeddings ``view_1``, ``view_2``, ``view_3`` (B, projection_dim), not
            normalised; ``features`` (B, C'), the pooled last map of ``view_1`` (of ``corrupted`` without the contrast),
            without gradient, for the collapse monitor.
        """
        output = {}
        if self.restorer is not None:
            check_size(views["corrupted"].shape[2:])
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
                maps = encode(self.backbone, views["corrupted"])
            output["restored"] = self.restorer(decode(self.backbone, maps))
            output["features"] = pooled(maps[-1]).detach()
        if self.projector is not None:
            check_size(views[VIEWS[0]].shape[2:])
            # each sample is normalised by itself: one pass equals a pass of each view
            last = encode(self.backbone, torch.cat([views[name] for name in VIEWS]))[-1]
            embeddings = self.projector(self._pool(last)).chunk(len(VIEWS))
            output |= dict(zip(VIEWS, embeddings, strict=True))
            output["features"] = pooled(last.chunk(len(VIEWS))[0]).detach()
        return output

    def watched(self) -> Watched:
        """Return the pooled last map, and with the contrast the embeddings of two views."""
        if self.projector is None:
            return Watched(("features",))
        return Watched(("features", VIEWS[0]), (VIEWS[:2],))

    def trained_parts(self) -> tuple[str, ...]:
        """Return the names of the encoder's tensors, unless it is frozen, and with the restoration the decoder's."""
        return self._names(not self.freeze_encoder)

    def shared_parts(self) -> tuple[str, ...]:
        """Return the names of the encoder's tensors, frozen or not, and with the restoration the decoder's."""
        return self._names(True)

    def _names(self, encoder: bool) -> tuple[str, ...]:
        prefixes = (ENCODER if encoder else ()) + (() if self.restorer is None else DECODER)
        return names_beginning_with(self.backbone, prefixes)

    def _pool(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch cells"]:
        pool = F.adaptive_avg_pool2d if self.dims == 2 else F.adaptive_avg_pool3d
        return pool(x, self.pool_size).flatten(1)


def _check(backbone: nn.Module, restoration: bool, contrast: bool, numbers: Sequence[int], frozen: bool) -> None:
    if not (restoration or contrast):
        raise ValueError("RegressionContrast: restoration and contrast are both off: nothing would be trained")
    if min(numbers) < 1:
        raise ValueError(
            f"RegressionContrast: projection_dim, projector_width and pool_size must be at least 1, got {numbers}"
        )
    if frozen and contrast:
        raise ValueError("RegressionContrast: a frozen encoder cannot learn the contrast: set contrast_weight to 0")
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in backbone.modules()):
        raise ValueError(
            "RegressionContrast: the backbone has batch norm, which would mix views, and corrupted with clean slices; "
            'norm=("group", {"num_groups": 4}) treats each sample by itself'
        )


def check_size(size: Sequence[int]) -> None:
    """Raise ValueError if the backbone cannot halve images of this size four times."""
    least = 2**STAGES
    if min(size) < least:
        raise ValueError(
            f"RegressionContrast: size {tuple(size)}: each side must be at least {least}, the backbone halves four "
            "times"
        )


class RegressionContrastLoss(TermLoss):
    """Pulls the restored slice towards the slice, pulls its views together, and pushes apart slices of other slabs.

    ``L = restoration_weight · L_restoration + contrast_weight · L_contrast``; `restoration` and `slab_contrast` give
    the formulas. The joint objective is this project's own; the paper compares the two terms.

    Args:
        restoration_weight: weight of the restoration in the sum that is minimised; no unit, 0 or more. 0: the term is
            left out.
        contrast_weight: weight of the contrast in the sum that is minimised; no unit, 0 or more. 0: the term is left
            out.
        unchanged_weight: weight of a pixel that the corruption did not change, relative to a changed pixel; no unit, 0
            or more. 1: context restoration; 0: only changed pixels are scored, as usual with masking.
        exponent: exponent of the absolute differences, above 0; 2: squared error, 1: absolute error.
        temperature: the cosine similarities are divided by this number, τ; no unit, above 0.
        slabs: number of equal parts of the slice axis, at least 1; slices of one slab, of any subject, are never
            negatives; None or "none": all other slices are negatives, as in SimCLR.
        cross_subject: share of the contrast for which slices of the same slab of other samples are positives, 0 up to
            1.

    Raises:
        ValueError: both weights are 0, or a number is out of range.
    """

    @knob_types
    def __init__(
        self,
        restoration_weight: float = 1.0,
        contrast_weight: float = 0.1,
        unchanged_weight: float = 1.0,
        exponent: float = 2.0,
        temperature: float = 0.1,
        slabs: int | None = 4,
        cross_subject: float = 0.0,
    ) -> None:
        super().__init__()
        if restoration_weight == contrast_weight == 0:
            raise ValueError("RegressionContrastLoss: restoration_weight and contrast_weight are both 0")
        self.restoration = RestorationLoss(restoration_weight, unchanged_weight, exponent)
        self.contrast = SlabContrastiveLoss(contrast_weight, temperature, slabs, cross_subject, VIEWS)
        self.contrasts = ("contrast",) if contrast_weight > 0 else ()

    def forward(self, output: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms ``restoration`` and ``contrast``; a term of weight 0 is left out."""
        return self.restoration(output, target) | self.contrast(output, target)


class RegressionContrastViews:
    """Makes a corrupted form of each sample on the same grid, and three views: the sample itself and two crops.

    The corruption swaps patches, masks blocks, or both. The crops are resized to the size of the sample and change
    contrast and brightness. There is no flip, because left and right are different anatomy.

    Args:
        corruption_patch: side of the patches that are swapped and of the blocks that are masked, in pixels (2D) or
            voxels (3D), at least 1; about an eighth of the sample's side, since smaller patches are too easy.
        swaps: number of pairs of patches that change places in each sample, 0 or more. 0: no patch is moved.
        mask_ratio: share of the blocks that are masked by 0, the mean of z-scored images; 0 to 1. 0: no block is
            masked.
        area_range: smallest and largest area of a crop, as a share of the area (3D: volume) of the sample; above 0, at
            most 1.
        contrast: largest relative change of the contrast of a crop about its mean, in both directions; no unit, 0 to 1.
            0: no change.
        shift: largest change of the brightness of a crop, in both directions; in the units of the images (standard
            deviations if z-scored), 0 or more. 0: no change.

    Raises:
        ValueError: a number is out of range; on a call: the patches do not fit into the sample.
    """

    @knob_types
    def __init__(
        self,
        corruption_patch: int = 8,
        swaps: int = 10,
        mask_ratio: float = 0.0,
        area_range: Sequence[float] = (0.25, 1.0),
        contrast: float = 0.3,
        shift: float = 0.5,
    ) -> None:
        if not 0 <= contrast <= 1 or shift < 0:
            raise ValueError(
                f"RegressionContrastViews: contrast {contrast} must be 0 to 1, shift {shift} 0 or more"
            )
        steps = [PatchSwap(corruption_patch, swaps)] if swaps else []
        self.corrupt = Corruption([*steps, *([BlockMask(corruption_patch, mask_ratio)] if mask_ratio else [])])
        self.area_range, self.contrast, self.shift = tuple(area_range), contrast, shift

    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the views and the target of a batch.

        The views hold ``corrupted``, ``view_1`` (the sample), ``view_2`` and ``view_3``; the target holds ``image``,
        ``changed`` (B, 1, *S) and ``warp_1``, ``warp_2``, ``warp_3``; both hold ``position`` and ``subject``.
        """
        sample = batch["image"]
        known = {"position": batch["position"], "subject": batch["subject"]}
        corrupted, changed = self.corrupt(sample)
        dims = sample.ndim - 2
        target = {**known, "image": sample, "changed": changed}
        target["warp_1"] = torch.eye(dims, dims + 1).to(sample).expand(len(sample), -1, -1)
        views = {**known, "corrupted": corrupted, VIEWS[0]: sample}
        for number in (2, 3):
            warp = random_crop_warp(len(sample), sample.shape[2:], self.area_range, aspect=1.0, rotation=0.0)
            target[f"warp_{number}"] = warp.to(sample)
            crop = resample(sample, target[f"warp_{number}"])
            views[f"view_{number}"] = contrast_and_shift(crop, self.contrast, self.shift)
        return views, target

"""JCL: pre-trains the encoder and part of the decoder together, by two contrasts and one distance.

S. Zeng et al., Multi-level Asymmetric Contrastive Learning for Medical Image Segmentation Pre-training, arXiv
2309.11876 (version 1 calls the method JCL, later versions MACL), IEEE JBHI 2026, doi 10.1109/JBHI.2026.3669549.
"""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from monai.networks.nets import BasicUNet
from torch import Tensor

from medcl_monai.knobs import knob_types
from medcl_monai.losses.cosine import check_temperature
from medcl_monai.losses.positional import (
    check_threshold,
    dense_rows,
    local_pair_contrast,
    pair_contrast,
)
from medcl_monai.losses.terms import TermLoss
from medcl_monai.methods.base import PretrainingNetwork, Watched, names_beginning_with
from medcl_monai.networks.encode import encode
from medcl_monai.networks.heads import PooledHead, dense_head
from medcl_monai.networks.unet import DECODER, ENCODER, STAGES, check_stages, decode, spatial_dims, widths
from medcl_monai.precision import full_precision
from medcl_monai.transforms.views import jitter, random_warp, resample


class JCL(PretrainingNetwork):
    """One encoder in two branches: one for images at full size, one for reduced images with part of the decoder.

    The auxiliary branch encodes ``aligned_2`` and ``view_2`` at full size. The dominant branch encodes ``aligned_1``
    and ``view_1``, reduced by 2^-stages, and applies the first `stages` decoder stages. These stages undo the
    reduction, so the pixel map of the dominant branch has the same grid as the bottleneck of the auxiliary branch.
    There is no momentum copy, no stop-gradient and no queue: all terms send a gradient to both branches (Zeng et al.,
    section 3).

    Differences from the authors' code: images and bottlenecks are reduced by the mean over blocks (the authors use
    bilinear interpolation with aligned corners: `corner_aligned`); decoder stages beyond `stages` are not run.

    Args:
        backbone: MONAI's BasicUNet.
        stages: number of decoder stages that are pre-trained, the paper's n; 0 to 4. The dominant branch reads images
            that are reduced by the factor 2^-n.
        projection_dim: number of dimensions of the image-level embeddings, and width of the image heads' hidden layer.
        image: whether the network computes embeddings of whole images (the image level).
        pixel: whether the network computes embeddings at each site of a map (the pixel level).
        corner_aligned: whether images and bottlenecks are reduced as in the released code, by linear interpolation with
            aligned corners; false: by the mean over blocks.

    Raises:
        ValueError: `image` and `pixel` are both off, so that nothing would train the decoder stages; `stages` is out of
            range; in `forward`: the view size does not fit the two branches.
    """

    @knob_types
    def __init__(
        self,
        backbone: BasicUNet,
        stages: int = 2,
        projection_dim: int = 128,
        image: bool = True,
        pixel: bool = True,
        corner_aligned: bool = False,
    ) -> None:
        super().__init__()
        if not (image or pixel):
            raise ValueError("JCL: image and pixel are both off: nothing would train the decoder's stages")
        self.stages, self.corner_aligned = check_stages(stages), corner_aligned
        self.backbone, self.dims = backbone, spatial_dims(backbone)
        bottleneck, width = widths(backbone)[0], widths(backbone)[stages]
        self.image_dominant = PooledHead(width, projection_dim) if image else None
        self.image_auxiliary = PooledHead(bottleneck, projection_dim) if image else None
        self.pixel_auxiliary = dense_head(self.dims, bottleneck, width) if pixel else None
        self.freeze_untrained()

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the embeddings and maps of both branches.

        Args:
            views: ``aligned_1``, ``aligned_2``, ``view_1``, ``view_2``, each (B, C, *S).

        Returns:
            ``feature_dominant``, ``feature_auxiliary`` (B, C, *S/2^(4+n)); ``pixel_dominant``, ``pixel_auxiliary``
            (B, C', *S/16); ``image_dominant``, ``image_auxiliary`` (B, projection_dim); ``features`` (B, C), the pooled
            auxiliary bottleneck without gradient, for the collapse monitor.
        """
        check_view_size(views["aligned_1"].shape[2:], self.stages)
        bottleneck = encode(self.backbone, views["aligned_2"])[-1]
        maps = encode(self.backbone, self.reduce(views["aligned_1"]))
        output = {
            "feature_dominant": maps[-1],
            "feature_auxiliary": self.reduce(bottleneck),
            "features": bottleneck.detach().flatten(2).mean(2),
        }
        if self.pixel_auxiliary is not None:
            output["pixel_dominant"] = decode(self.backbone, maps, self.stages)
            output["pixel_auxiliary"] = self.pixel_auxiliary(bottleneck)
        # the varied pair is encoded by itself: in one batch with the aligned pair, batch norm would mix the two pairs
        if self.image_dominant is not None and self.image_auxiliary is not None:
            reduced = encode(self.backbone, self.reduce(views["view_1"]))
            output["image_dominant"] = self.image_dominant(decode(self.backbone, reduced, self.stages))
            output["image_auxiliary"] = self.image_auxiliary(encode(self.backbone, views["view_2"])[-1])
        return output

    def reduce(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch channels *reduced"]:
        """Reduce images or bottlenecks by 2^-stages along every axis."""
        if self.stages == 0:
            return x
        factor = 2**self.stages
        if self.corner_aligned:
            mode = "bilinear" if self.dims == 2 else "trilinear"
            return F.interpolate(x, [side // factor for side in x.shape[2:]], mode=mode, align_corners=True)
        pool = F.avg_pool2d if self.dims == 2 else F.avg_pool3d
        return pool(x, factor)

    def watched(self) -> Watched:
        """Return the embeddings of both branches at each level, and the pooled bottleneck of the auxiliary branch."""
        levels = [(f"{level}_auxiliary", f"{level}_dominant") for level in ("feature", "pixel", "image")]
        return Watched(("features", *(key for pair in levels for key in pair)), tuple(levels))

    def trained_parts(self) -> tuple[str, ...]:
        """Return the names of the tensors of the encoder and of the first `stages` decoder stages."""
        return names_beginning_with(self.backbone, ENCODER + DECODER[: self.stages])


class JCLLoss(TermLoss):
    """Pulls together slices at nearby positions, as whole images and site by site, and both branches' bottlenecks.

    Zeng et al., eq. 8 to 11: ``L = λ1 L_g + λ2 L_d + λ3 L_ER``, with means over the anchors in place of sums.

    Args:
        image_weight: weight of the contrast of whole images, the paper's λ1; no unit, 0 or more. 0: the term is left
            out.
        pixel_weight: weight of the contrast at each site of the pixel maps, the paper's λ2; no unit, 0 or more. 0: the
            term is left out.
        feature_weight: weight of the distance between the bottlenecks of both branches, the paper's λ3; no unit, 0 or
            more. 0: the term is left out.
        temperature: the cosine similarities are divided by this number, the paper's τ; no unit, above 0.
        threshold: slices whose positions differ by less than this share of the slice axis are positives of each other,
            the paper's t; above 1e-6.
        base_temperature: the contrasts are multiplied by τ divided by this number, as in the released code, which uses
            0.07; no unit, above 0. None: the contrasts are not multiplied.
        gather: whether slices are contrasted with the slices of all processes; false: with the slices of the same
            process only.

    Raises:
        ValueError: all weights are 0, a weight is negative, or `temperature`, `threshold` or `base_temperature` is out
            of range.
    """

    contrasts = ("image", "pixel")

    @knob_types
    def __init__(
        self,
        image_weight: float = 1.0,
        pixel_weight: float = 0.5,
        feature_weight: float = 1.0,
        temperature: float = 0.1,
        threshold: float = 0.1,
        base_temperature: float | None = None,
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.weights = {"image": image_weight, "pixel": pixel_weight, "feature": feature_weight}
        if min(self.weights.values()) < 0 or max(self.weights.values()) == 0:
            raise ValueError(f"JCLLoss: weights must be 0 or more and not all 0, got {self.weights}")
        check_temperature(temperature)
        check_threshold(threshold)
        if base_temperature is not None and not base_temperature > 0:
            raise ValueError(f"JCLLoss: base_temperature must be above 0 or None, got {base_temperature}")
        self.temperature, self.threshold = temperature, threshold
        self.scale = 1.0 if base_temperature is None else temperature / base_temperature
        self.contrast = pair_contrast if gather else local_pair_contrast

    def forward(self, output: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms ``image``, ``pixel`` and ``feature``; `target` holds ``position`` (B,).

        A term of weight 0 is neither computed nor returned.
        """
        terms = {}
        for level in ("image", "pixel"):
            if self.weights[level] > 0:
                rows = dense_rows(output[f"{level}_auxiliary"]), dense_rows(output[f"{level}_dominant"])
                value = self.contrast(*rows, target["position"], self.temperature, self.threshold)
                terms[level] = self.weights[level] * self.scale * value
        if self.weights["feature"] > 0:
            terms["feature"] = self.weights["feature"] * feature_distance(
                output["feature_dominant"], output["feature_auxiliary"]
            )
        return terms


@full_precision
def feature_distance(
    dominant: Float[Tensor, "batch channels *size"], auxiliary: Float[Tensor, "batch channels *size"]
) -> Float[Tensor, ""]:
    """Compute the mean absolute difference of the two bottlenecks, in fp32 at least (Zeng et al., eq. 11).

    Both bottlenecks receive a gradient. The distance depends on the scale of the features, so the distance also falls
    when the features shrink.
    """
    return F.l1_loss(dominant, auxiliary)


def check_view_size(size: Sequence[int], stages: int) -> None:
    """Raise ValueError if the view size gives the branches different grids, or gives a bottleneck of a single cell."""
    multiple = 2 ** (STAGES + stages)
    shown = tuple(size)
    if any(side % multiple for side in size):
        off = next(side for side in size if side % multiple)
        floor = off // multiple * multiple
        near = f"{floor} or {floor + multiple}" if floor > multiple else str(2 * multiple)  # one cell is not enough
        other = f", or stages={stages - 1} (multiples of {multiple // 2})" if stages else ""
        raise ValueError(
            f"JCL: view size {shown} is not a multiple of {multiple} in every axis: the backbone halves four times "
            f"after a reduction by {2**stages} (stages={stages}); use {near}{other}"
        )
    if all(side == multiple for side in size):
        cells = "x".join("1" for _ in size)
        other = f", or {multiple} with stages={stages - 1}" if stages else ""
        raise ValueError(
            f"JCL: view size {shown} leaves a {cells} bottleneck in the dominant branch (stages={stages}): "
            f"the smallest size is {2 * multiple}{other}"
        )


class JCLViews:
    """Makes an aligned pair, the sample itself twice, and a varied pair, two affine resamplings with jitter.

    Zeng et al., eq. 5: the spatial-invariance group consists of original images, the spatial-variance group of
    translated, rotated and scaled images. There is no flip, because left and right are different anatomy.

    Args:
        rotation: largest rotation of the varied pair in degrees, in both directions, in 3D about each axis; 0: no
            rotation.
        scale_range: smallest and largest magnification of the varied pair, no unit, above 0; the magnification is drawn
            log-uniformly.
        translation: largest shift of the varied pair along each axis as a share of the sample's side, in both
            directions; 0: no shift.
        aligned_jitter: largest change of contrast (relative) and brightness (in the units of the images) in the aligned
            pair, 0 to 1; 0: the aligned pair equals the sample, bit for bit.
        view_jitter: largest change of contrast (relative) and brightness (in the units of the images) in the varied
            pair, 0 to 1; 0: no change.
    """

    @knob_types
    def __init__(
        self,
        rotation: float = 20.0,
        scale_range: Sequence[float] = (0.8, 1.25),
        translation: float = 0.1,
        aligned_jitter: float = 0.0,
        view_jitter: float = 0.2,
    ) -> None:
        self.rotation, self.scale_range, self.translation = rotation, tuple(scale_range), translation
        self.aligned_jitter, self.view_jitter = aligned_jitter, view_jitter

    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the views and the target of a batch.

        The views hold ``aligned_1``, ``aligned_2``, ``view_1`` and ``view_2``; the target holds ``warp_1``, ``warp_2``
        and ``image``; both hold ``position`` and ``subject``.
        """
        sample = batch["image"]
        known = {"position": batch["position"], "subject": batch["subject"]}
        views, target = dict(known), {**known, "image": sample}
        for number in (1, 2):
            warp = random_warp(len(sample), sample.shape[2:], self.rotation, self.scale_range, self.translation)
            target[f"warp_{number}"] = warp.to(sample)
            views[f"view_{number}"] = jitter(resample(sample, target[f"warp_{number}"]), self.view_jitter)
            views[f"aligned_{number}"] = jitter(sample, self.aligned_jitter)
        return views, target

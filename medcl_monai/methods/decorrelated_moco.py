"""Decorrelated MoCo: MoCo v2 with contrast of regions and whitened features, against dimensional collapse.

J. Hassanpour, V. Srivastav, D. Mutter, N. Padoy, Overcoming Dimensional Collapse in Self-supervised Contrastive
Learning for Medical Image Segmentation, ISBI 2024, arXiv 2402.14611.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets import FlexibleUNet
from torch import Tensor, nn

from medcl_monai.distributed import gather
from medcl_monai.knobs import knob_types
from medcl_monai.losses.covariance import covariance_penalty
from medcl_monai.losses.infonce import QueueInfoNCELoss
from medcl_monai.losses.local import LocalInfoNCELoss
from medcl_monai.methods.base import PretrainingNetwork, names_beginning_with
from medcl_monai.networks.flexible_unet import STAGES, STRIDE, decode_blocks, decoder_widths, encoder_widths
from medcl_monai.networks.heads import pointwise_head, projector
from medcl_monai.networks.momentum import FeatureQueue, MomentumCopy
from medcl_monai.networks.whitening import WhitenZCA, inverse_root_eigh
from medcl_monai.transforms.intensity import blur, contrast_and_shift, gamma, noise
from medcl_monai.transforms.views import random_crop_warp, resample

logger = logging.getLogger(__name__)
SEVERED = ("resnet18", "resnet34")  # MONAI's shortcut "A" reads out.data: no gradient passes it


class DecorrelatedMoCo(PretrainingNetwork):
    """A query network with a whitened last map, its momentum copy as key network, and a queue of older keys.

    ``view_1`` goes to the query network: encoder, ZCA whitening of its last map over batch and positions, global
    average, projector. ``view_2`` goes to the momentum copy of all of it. A local head reads an inner map of both
    (Hassanpour et al. 2024; He et al. 2020).

    Differs from the authors' code in: whitening stands after the last block, in groups and exact (theirs: five
    iterations in one group, inside the block); the local head reads a feature map (theirs the image, which trains
    nothing); keys are normalised in chunks of a shuffled batch, on one device too.

    Args:
        backbone: MONAI's FlexibleUNet with a residual encoder.
        projection_dim: width of ``query`` and ``key``.
        local: whether the local head exists.
        local_level: the map that it reads: "layer1" to "layer4" of the encoder, "decoder1" to "decoder5".
        local_dim: width of the local embeddings.
        local_hidden: width of the local head's hidden layer.
        whiten: whether the last map is whitened.
        group_size: of the whitening, see `WhitenZCA`.
        whiten_eps: its ridge relative to the variance.
        whiten_floor: its absolute ridge.
        whiten_method: `inverse_root_eigh` or `inverse_root_newton`.
        whiten_momentum: of its running statistics.
        shuffle_groups: fresh random groups in every batch.
        queue_size: older keys that are kept.
        momentum: of the copy; over a run of n steps momentum^n should fall below 0.15.
        key_splits: chunks of the batch in which keys are normalised; divides the batch.

    Raises:
        ValueError: a knob out of range; in `forward`: a view size or a batch that does not fit.
    """

    @knob_types
    def __init__(
        self,
        backbone: FlexibleUNet,
        projection_dim: int = 128,
        local: bool = True,
        local_level: str = "layer3",
        local_dim: int = 128,
        local_hidden: int = 256,
        whiten: bool = True,
        group_size: int = 64,
        whiten_eps: float = 1e-4,
        whiten_floor: float = 1e-6,
        whiten_method: Callable[[Tensor], Tensor] = inverse_root_eigh,
        whiten_momentum: float = 0.1,
        shuffle_groups: bool = False,
        queue_size: int = 65536,
        momentum: float = 0.999,
        key_splits: int = 4,
    ) -> None:
        super().__init__()
        if min(key_splits, projection_dim, local_dim, local_hidden) < 1:
            raise ValueError(
                f"DecorrelatedMoCo: key_splits {key_splits}, projection_dim {projection_dim}, local_dim {local_dim} "
                f"and local_hidden {local_hidden} must be at least 1"
            )
        if backbone.backbone in SEVERED:
            logger.warning(
                "%s: MONAI's shortcuts of this network pass no gradient, and it cannot be exported; resnet10 and "
                "resnet50 have neither fault", backbone.backbone,
            )
        self.backbone, self.key_splits, self.local_level = backbone, key_splits, local_level
        self.level, stages = read_level(local_level)
        self.decoder_stages = stages if local else 0
        width, dims = encoder_widths(backbone)[-1], backbone.spatial_dims
        settings = (group_size, whiten_eps, whiten_floor, whiten_momentum, whiten_method, shuffle_groups)
        self.whiten = WhitenZCA(width, *settings) if whiten else nn.Identity()
        self.projector = projector(width, width, projection_dim)
        self.local_head = pointwise_head(dims, self._local_width(), local_hidden, local_dim) if local else None
        self.freeze_untrained()
        self.key_network = MomentumCopy(self._parts(), momentum)
        self.queue = FeatureQueue(queue_size, projection_dim)
        # weights that are loaded into the backbone later, as initial_weights, reach the copy too
        backbone.register_load_state_dict_post_hook(self._follow_loaded)

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings of both views, and the queue of older keys (the buffer itself, which `update` changes).

        Args:
            views: ``view_1``, ``view_2`` (B, C, *S), ``subject``, ``position`` (B,).

        Returns:
            ``query``, ``key`` (B, projection_dim) and ``queue`` (K, projection_dim), unit vectors; ``local_query``,
            ``local_key`` (B, local_dim, *L), not normalised; ``whitened`` (B, C), what the projector reads;
            ``features`` (B, C), the pooled last map before whitening, without gradient; ``subject``, ``position``,
            ``queue_subject``, ``queue_position``.
        """
        self._check_views(views["view_1"], views["view_2"])
        output = self._embed(views["view_1"], self._parts())
        with torch.no_grad():
            keys = self._keys(views["view_2"])
        output |= {"key": keys["query"], "queue": self.queue.features}
        output |= {"queue_subject": self.queue.subject, "queue_position": self.queue.position}
        if self.local_head is not None:
            output["local_key"] = keys["local_query"]
        return {**output, "subject": views["subject"], "position": views["position"]}

    def update(self, outputs: Sequence[Mapping[str, Tensor]]) -> None:
        """After an optimiser step: the copy follows, then the keys of all micro-batches and processes are queued."""
        self.key_network.update(self._parts())
        if outputs:
            rows = (torch.cat([output[name] for output in outputs]) for name in ("key", "subject", "position"))
            self.queue.push(*(gather(part) for part in rows))

    def trained_parts(self) -> tuple[str, ...]:
        """The encoder; with a local head on the decoder also the blocks up to it."""
        blocks = tuple(f"decoder.blocks.{k}." for k in range(self.decoder_stages))
        return names_beginning_with(self.backbone, ("encoder.", *blocks))

    def _parts(self) -> dict[str, nn.Module]:
        """What is trained, and copied, by name."""
        parts = {"encoder": self.backbone.encoder, "whiten": self.whiten, "projector": self.projector}
        if self.local_head is not None:
            parts["local_head"] = self.local_head
        if self.decoder_stages:
            parts["decoder"] = self.backbone.decoder.blocks[: self.decoder_stages]
        return parts

    def _embed(self, view: Tensor, parts: dict[str, nn.Module] | nn.ModuleDict) -> dict[str, Tensor]:
        maps = list(parts["encoder"](view))
        whitened = pooled(parts["whiten"](maps[-1]))
        output = {
            "query": unit(parts["projector"](whitened)),
            "whitened": whitened,
            "features": pooled(maps[-1].detach()),
        }
        if self.local_head is not None:
            read = decode_blocks(parts["decoder"], maps) if self.decoder_stages else maps[self.level]
            output["local_query"] = parts["local_head"](read)
        return output

    def _keys(self, view: Tensor) -> dict[str, Tensor]:
        """Embeddings by the copy, a shuffled chunk at a time: query and key share no statistics of the batch.

        On any number of processes this does what shuffling over processes does in MoCo.
        """
        if self.key_splits == 1:  # batch statistics do not see the order
            return self._embed(view, self.key_network.copies)
        order = torch.randperm(len(view)).to(view.device)
        chunks = [self._embed(chunk, self.key_network.copies) for chunk in view[order].chunk(self.key_splits)]
        back = order.argsort()
        names = [name for name in ("query", "local_query") if name in chunks[0]]
        return {name: torch.cat([chunk[name] for chunk in chunks])[back] for name in names}

    def _check_views(self, view: Tensor, other: Tensor) -> None:
        size = tuple(view.shape[2:])
        if len(view) != len(other):
            raise ValueError(f"DecorrelatedMoCo: view_1 holds {len(view)} samples, view_2 {len(other)}")
        if len(view) % self.key_splits:
            raise ValueError(f"DecorrelatedMoCo: batch of {len(view)} is not divisible by key_splits={self.key_splits}")
        if self.decoder_stages and any(side % STRIDE for side in size):
            fitting = tuple(-(-side // STRIDE) * STRIDE for side in size)
            raise ValueError(
                f"DecorrelatedMoCo: view size {size} is not a multiple of {STRIDE}, which the decoder of FlexibleUNet "
                f'needs (local_level="{self.local_level}"); use {fitting} or an encoder level'
            )
        if any(side <= STRIDE for side in size):
            positions = math.prod(-(-side // STRIDE) for side in size)
            raise ValueError(
                f"DecorrelatedMoCo: view size {size} leaves {positions} position{'s' if positions > 1 else ''} in "
                f"layer4; each side must be at least {STRIDE + 1}"
            )

    def _local_width(self) -> int:
        widths = encoder_widths(self.backbone)
        return decoder_widths(self.backbone)[self.decoder_stages - 1] if self.decoder_stages else widths[self.level]

    def _follow_loaded(self, *_: object) -> None:
        self.key_network.reset(self._parts())


def read_level(local_level: str) -> tuple[int, int]:
    """Place among the encoder's maps and number of decoder blocks (0 of an encoder level) of a level's name.

    Raises:
        ValueError: no such level.
    """
    found = re.fullmatch(r"(layer[1-4]|decoder[1-5])", local_level)
    if found is None:
        raise ValueError(f'local_level must be "layer1" to "layer4" or "decoder1" to "decoder5", got {local_level!r}')
    number = int(local_level[-1])
    return (number, 0) if local_level.startswith("layer") else (STAGES - 1, number)


def pooled(x: Tensor) -> Tensor:
    """Mean of a map over its positions, in fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).flatten(2).mean(2)


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in fp32 at least."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)


class DecorrelatedMoCoLoss(nn.Module):
    """Queries find their keys, regions find themselves; on request correlated channels cost something.

    ``L = L_global + local_weight · L_local (+ covariance_weight · L_covariance)``, see `queue_infonce`, `local_infonce`
    and `covariance_penalty`. Decorrelation itself is a layer of the network.

    Args:
        temperature: of the global term, above 0.
        local_weight: 0 omits the local term and draws no regions.
        local_temperature: of the local term, above 0.
        regions: per sample.
        overdraw: so many times as many points are tried to find them.
        min_distance: cells of the map below which regions are no negatives of each other.
        match: `match_by_location` (None) or `match_by_feature`.
        exclude_radius: see `QueueInfoNCELoss`.
        covariance_weight: of the penalty on ``whitened``; 0 omits it.

    Raises:
        ValueError: a number out of range.
    """

    @knob_types
    def __init__(
        self,
        temperature: float = 0.2,
        local_weight: float = 0.5,
        local_temperature: float = 0.2,
        regions: int = 20,
        overdraw: float = 4.0,
        min_distance: float = 1.0,
        match: Callable | None = None,
        exclude_radius: float | str | None = 0.0,
        covariance_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if local_weight < 0 or covariance_weight < 0:
            raise ValueError(
                f"DecorrelatedMoCoLoss: local_weight {local_weight} and covariance_weight {covariance_weight} "
                "must be 0 or more"
            )
        self.global_loss = QueueInfoNCELoss(temperature, exclude_radius)
        self.local_loss = LocalInfoNCELoss(local_temperature, regions, overdraw, min_distance, match, local_weight)
        self.covariance_weight = covariance_weight

    def forward(self, output: Mapping[str, Tensor], target: Mapping[str, object]) -> dict[str, Tensor]:
        """Weighted terms ``global``, ``local`` and ``covariance``."""
        terms = self.global_loss(output)
        if self.local_loss.weight > 0:
            terms |= self.local_loss(output, target)
        if self.covariance_weight > 0:
            terms["covariance"] = self.covariance_weight * covariance_penalty(output["whitened"])
        return terms


class DecorrelatedMoCoViews:
    """Two independent crops of each sample, turned a little, with changes of intensity; no flip (laterality).

    The released RandAugment and erasing are not followed: see docs/methods/decorrelated_moco.md.

    Args:
        view_size: pixels or voxels of the views.
        area_range: smallest and largest share of the sample's area (3D: volume), above 0 to 1.
        aspect: largest ratio of a crop's sides, 1 and up.
        rotation: degrees, each way.
        gamma: the exponent is exp(± this).
        contrast: about the mean, × 1 ± this.
        shift: of the brightness, ± this; images are in [0, 1].
        noise: largest standard deviation.
        blur: share of the views that are blurred, σ 0.1 to 2 pixels.
        foreground: intensity of the sample above which there is tissue: regions of air look alike.

    Raises:
        ValueError: a number out of range; on a call: see `random_crop_warp`.
    """

    @knob_types
    def __init__(
        self,
        view_size: Sequence[int],
        area_range: Sequence[float] = (0.2, 1.0),
        aspect: float = 4 / 3,
        rotation: float = 15.0,
        gamma: float = 0.5,
        contrast: float = 0.4,
        shift: float = 0.2,
        noise: float = 0.08,
        blur: float = 0.0,
        foreground: float = 0.02,
    ) -> None:
        if min(gamma, contrast, shift, noise, blur) < 0 or max(contrast, blur) > 1 or min(view_size) < 1:
            raise ValueError(
                f"DecorrelatedMoCoViews: gamma {gamma}, shift {shift} and noise {noise} must be 0 or more, "
                f"contrast {contrast} and blur {blur} 0 to 1, view_size {tuple(view_size)} 1 and up"
            )
        self.view_size, self.crop = tuple(view_size), (tuple(area_range), aspect, rotation)
        self.gamma, self.contrast, self.shift, self.noise, self.blur = gamma, contrast, shift, noise, blur
        self.foreground = foreground

    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Views (``view_1``, ``view_2``) and target (``warp_1``, ``warp_2``, ``foreground_1``, …)."""
        sample = batch["image"]
        known = {"position": batch["position"], "subject": batch["subject"]}
        views, target = dict(known), {**known, "image": sample}
        for number in (1, 2):
            warp = random_crop_warp(len(sample), sample.shape[2:], *self.crop).to(sample)
            view = resample(sample, warp, self.view_size)
            views[f"view_{number}"], target[f"warp_{number}"] = self._vary(view), warp
            if number == 1:
                target["foreground_1"] = (view[:, :1] > self.foreground).to(view)
        return views, target

    def _vary(self, view: Tensor) -> Tensor:
        view = contrast_and_shift(gamma(view, self.gamma), self.contrast, self.shift)
        return blur(noise(view, self.noise), self.blur)

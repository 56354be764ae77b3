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
from medcl_monai.losses.covariance import CovarianceLoss
from medcl_monai.losses.infonce import QueueInfoNCELoss
from medcl_monai.losses.local import LocalInfoNCELoss
from medcl_monai.losses.terms import SumOfLosses, TermLoss
from medcl_monai.methods.base import PretrainingNetwork, Watched, names_beginning_with
from medcl_monai.networks.flexible_unet import STAGES, STRIDE, decode_blocks, decoder_widths, encoder_widths
from medcl_monai.networks.heads import pointwise_head, projector
from medcl_monai.networks.momentum import FeatureQueue, MomentumCopy
from medcl_monai.networks.whitening import WhitenZCA
from medcl_monai.transforms.regions import draw_regions

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
        whiten: what decorrelates the encoder's last map, as `WhitenZCA` of its width; None or "none": nothing does.
        projection_dim: width of ``query`` and ``key``.
        local_level: the map that the local head reads: "layer1" to "layer4" of the encoder, "decoder1" to "decoder5";
            None or "none": there is no local head.
        local_dim: width of the local embeddings; the head's hidden layer is twice as wide.
        queue_size: number of older keys that are kept.
        momentum: of the copy; over a run of n steps momentum^n should fall below 0.15.
        key_splits: number of chunks of the batch in which keys are normalised; divides the batch.

    Raises:
        ValueError: a knob out of range, or a whitening of another width; in `forward`: a view size or a batch that does
            not fit.
    """

    @knob_types
    def __init__(
        self,
        backbone: FlexibleUNet,
        whiten: nn.Module | None,
        projection_dim: int = 128,
        local_level: str | None = "layer3",
        local_dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        key_splits: int = 4,
    ) -> None:
        super().__init__()
        if min(key_splits, projection_dim, local_dim) < 1:
            raise ValueError(
                f"DecorrelatedMoCo: key_splits {key_splits}, projection_dim {projection_dim} and local_dim {local_dim} "
                "must be at least 1"
            )
        if backbone.backbone in SEVERED:
            logger.warning(
                "%s: MONAI's shortcuts of this network pass no gradient, and it cannot be exported; resnet10 and "
                "resnet50 have neither fault", backbone.backbone,
            )
        self.backbone, self.key_splits = backbone, key_splits
        self.local_level = local_level
        self.level, self.decoder_stages = (0, 0) if local_level is None else read_level(local_level)
        width, dims = encoder_widths(backbone)[-1], backbone.spatial_dims
        self.whiten = nn.Identity() if whiten is None else whiten
        if isinstance(whiten, WhitenZCA) and whiten.channels != width:
            raise ValueError(f"DecorrelatedMoCo: whiten is of {whiten.channels} channels, the encoder gives {width}")
        self.projector = projector(width, width, projection_dim)
        head = None if local_level is None else pointwise_head(dims, self._local_width(), 2 * local_dim, local_dim)
        self.local_head = head
        self.freeze_untrained()
        self.key_network = MomentumCopy(self._parts(), momentum)
        self.key_network.follow_loads_of(backbone, self._parts)
        self.queue = FeatureQueue(queue_size, projection_dim)

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

    def watched(self) -> Watched:
        """The encoder's pooled last map, whitened and not, the query, and the local map."""
        return Watched(("features", "whitened", "query", "local_query"), (("query", "key"),))

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


class DecorrelatedMoCoLoss(TermLoss):
    """Queries find their keys, regions find themselves; on request correlated channels cost something.

    ``L = L_global + local_weight · L_local (+ covariance_weight · L_covariance)``, see `queue_infonce`, `local_infonce`
    and `covariance_penalty`. Decorrelation itself is a layer of the network.

    Args:
        temperature: of the global term, above 0.
        local_weight: of the local term; 0 leaves the term out.
        local_temperature: of the local term, above 0.
        min_distance: cells of the map below which regions are no negatives of each other.
        match: `match_by_location` (None) or `match_by_feature`.
        exclude_radius: see `QueueInfoNCELoss`.
        covariance_weight: of the penalty on ``whitened``; 0 leaves the term out.

    Raises:
        ValueError: a number out of range.
    """

    @knob_types
    def __init__(
        self,
        temperature: float = 0.2,
        local_weight: float = 0.5,
        local_temperature: float = 0.2,
        min_distance: float = 1.0,
        match: Callable | None = None,
        exclude_radius: float | None = 0.0,
        covariance_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.losses = SumOfLosses({
            "global": QueueInfoNCELoss(temperature, exclude_radius),
            "local": LocalInfoNCELoss(local_temperature, min_distance, match, local_weight),
            "covariance": CovarianceLoss("whitened", covariance_weight),
        })
        self.contrasts = self.losses.contrasts

    def forward(self, output: Mapping[str, Tensor], target: Mapping[str, object]) -> dict[str, Tensor]:
        """Weighted terms ``global``, ``local`` and ``covariance``."""
        return self.losses(output, target)


class DecorrelatedMoCoViews:
    """Two independent crops of each sample, and regions that both show.

    The released RandAugment and erasing are not followed: see docs/methods/decorrelated_moco.md.

    Args:
        crops: makes the two views, as `CropViews`: views, and a target with ``warp_1``, ``warp_2``, ``foreground_1``.
        regions: number of regions per sample, at least 1.
        overdraw: so many times as many points are tried to find the regions, at least 1.
    """

    @knob_types
    def __init__(self, crops: Callable, regions: int = 20, overdraw: float = 4.0) -> None:
        self.crops, self.regions, self.overdraw = crops, regions, overdraw

    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Views (``view_1``, ``view_2``) and target (``warp_1``, ``warp_2``, ``foreground_1``, ``regions``, …)."""
        views, target = self.crops(batch)
        warps = target["warp_1"], target["warp_2"]
        return views, {**target, "regions": draw_regions(*warps, self.regions, self.overdraw, target["foreground_1"])}

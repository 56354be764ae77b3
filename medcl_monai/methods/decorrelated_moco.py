"""Decorrelated MoCo: MoCo v2 with a contrast of regions and with whitened features, against dimensional collapse.

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
from medcl_monai.networks.heads import pointwise_head, pooled, projector
from medcl_monai.networks.momentum import FeatureQueue, MomentumCopy
from medcl_monai.networks.whitening import WhitenZCA
from medcl_monai.transforms.regions import draw_regions

logger = logging.getLogger(__name__)
SEVERED = ("resnet18", "resnet34")  # in MONAI, their shortcut "A" reads out.data, which passes no gradient


class DecorrelatedMoCo(PretrainingNetwork):
    """A query network with whitened features, a momentum copy as key network, and a queue of older keys.

    The query network embeds ``view_1`` by the encoder, ZCA whitening of the encoder's last map over batch and
    positions, the global average and the projector. The key network, a momentum copy of the query network, embeds
    ``view_2``. In both networks, a local head reads an inner map (Hassanpour et al. 2024; He et al. 2020).

    Differences from the authors' code: whitening follows the last block, works in groups of channels and is exact (the
    authors' whitening stands inside the block and makes five iterations in one group); the local head reads a feature
    map (the authors' local term reads the image, which trains nothing); keys are normalised in chunks of a shuffled
    batch, also on one device.

    Args:
        backbone: MONAI's FlexibleUNet with a residual encoder.
        whiten: layer that decorrelates the channels of the encoder's last map, such as a `WhitenZCA` of the same width;
            None or "none": the map is not decorrelated.
        projection_dim: number of dimensions of the embeddings ``query`` and ``key``, at least 1.
        local: whether there is a local head; a loss without the local term has no use for the head.
        local_level: the map that the local head reads: "layer1" to "layer4" of the encoder, or "decoder1" to
            "decoder5"; None or "none": there is no local head.
        local_dim: number of dimensions of the local embeddings, at least 1; the hidden layer of the local head is twice
            as wide.
        queue_size: number of older keys in the queue, at least 1.
        momentum: share of its old weights that the key network keeps at each optimiser step, 0 to 1; the rest comes
            from the query network. Over a run of n steps, momentum^n should fall below 0.15.
        key_splits: the shuffled batch is divided into this number of chunks, and the keys of each chunk are computed
            with the chunk's own batch statistics; at least 1, a divisor of the batch size. 1: the batch is not divided.

    Raises:
        ValueError: a knob is out of range, or `whiten` has another width than the encoder's last map; in `forward`: the
            view size or the batch size does not fit.
    """

    @knob_types
    def __init__(
        self,
        backbone: FlexibleUNet,
        whiten: nn.Module | None,
        projection_dim: int = 128,
        local: bool = True,
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
        self.local_level = local_level if local else None
        self.level, self.decoder_stages = (0, 0) if self.local_level is None else read_level(self.local_level)
        width, dims = encoder_widths(backbone)[-1], backbone.spatial_dims
        self.whiten = nn.Identity() if whiten is None else whiten
        if isinstance(whiten, WhitenZCA) and whiten.channels != width:
            raise ValueError(f"DecorrelatedMoCo: whiten is of {whiten.channels} channels, the encoder gives {width}")
        self.projector = projector(width, width, projection_dim)
        self.local_head = None
        if self.local_level is not None:
            self.local_head = pointwise_head(dims, self._local_width(), 2 * local_dim, local_dim)
        self.freeze_untrained()
        self.key_network = MomentumCopy(self._parts(), momentum)
        self.key_network.follow_loads_of(backbone, self._parts)
        self.queue = FeatureQueue(queue_size, projection_dim)

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Embed both views, and return the embeddings together with the queue of older keys.

        The returned queue is the buffer itself, which `update` changes.

        Args:
            views: ``view_1`` and ``view_2`` (B, C, *S), ``subject`` and ``position`` (B,).

        Returns:
            ``query``, ``key`` (B, projection_dim) and ``queue`` (K, projection_dim), unit vectors; ``local_query``,
            ``local_key`` (B, local_dim, *L), not normalised; ``whitened`` (B, C), the input of the projector;
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
        """Update the key network after an optimiser step, then queue the keys of all micro-batches and processes."""
        self.key_network.update(self._parts())
        if outputs:
            rows = (torch.cat([output[name] for output in outputs]) for name in ("key", "subject", "position"))
            self.queue.push(*(gather(part) for part in rows))

    def watched(self) -> Watched:
        """Return the encoder's pooled last map before and after whitening, the query and the local map.

        Query and key are the pair of embeddings.
        """
        return Watched(("features", "whitened", "query", "local_query"), (("query", "key"),))

    def trained_parts(self) -> tuple[str, ...]:
        """Return the names of the encoder's tensors.

        If the local head reads a map of the decoder, the tensors of the decoder blocks up to this map are included.
        """
        blocks = tuple(f"decoder.blocks.{k}." for k in range(self.decoder_stages))
        return names_beginning_with(self.backbone, ("encoder.", *blocks))

    def _parts(self) -> dict[str, nn.Module]:
        """Return, by name, the modules that are trained and that the key network copies."""
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
        """Embed a view with the key network, one chunk of the shuffled batch at a time.

        So a query and its key do not share batch statistics, on any number of processes. MoCo shuffles over processes
        to the same end.
        """
        if self.key_splits == 1:  # batch statistics do not depend on the order of the samples
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
    """Translate the name of a level into the index of an encoder map and a number of decoder blocks.

    For a level of the encoder, the number of decoder blocks is 0.

    Raises:
        ValueError: there is no level of this name.
    """
    match = re.fullmatch(r"(layer[1-4]|decoder[1-5])", local_level)
    if match is None:
        raise ValueError(f'local_level must be "layer1" to "layer4" or "decoder1" to "decoder5", got {local_level!r}')
    number = int(local_level[-1])
    return (number, 0) if local_level.startswith("layer") else (STAGES - 1, number)


def unit(x: Tensor) -> Tensor:
    """Scale rows to length 1, in fp32 at least."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)


class DecorrelatedMoCoLoss(TermLoss):
    """Contrasts queries with keys and regions with each other, and on request penalises correlated channels.

    ``L = L_global + local_weight · L_local (+ covariance_weight · L_covariance)``; `queue_infonce`, `local_infonce` and
    `covariance_penalty` give the formulas. The method's decorrelation itself is a layer of the network.

    Args:
        temperature: the cosine similarities of the global term are divided by this number, τ; no unit, above 0.
        local_weight: weight of the local term in the sum that is minimised; no unit, 0 or more. 0: the term is left
            out.
        local_temperature: the cosine similarities of the local term are divided by this number, τ; no unit, above 0.
        min_distance: two regions nearer to each other than this distance, in either view, are not used as negatives of
            each other; in cells of the feature map, 0 or more. 0: all other regions of the sample are negatives.
        match: function that finds each region in the other view's feature map, `match_by_location` or
            `match_by_feature`; None: `match_by_location`.
        exclude_radius: older keys of the query's own subject are not used as negatives if their position differs from
            the query's position by at most this share of the slice axis; 0 or more. 0: only older keys at the same
            position are left out; None or "none": all older keys are negatives, as in MoCo.
        covariance_weight: weight of the penalty on the covariance between the channels of ``whitened`` in the sum that
            is minimised; no unit, 0 or more. 0: the term is left out.

    Raises:
        ValueError: a number is out of range.
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
        """Return the weighted terms ``global``, ``local`` and ``covariance``; a term of weight 0 is left out."""
        return self.losses(output, target)


class DecorrelatedMoCoViews:
    """Takes two independent crops of each sample, and draws regions that both crops show.

    The RandAugment and the erasing of the released code are not used; docs/methods/decorrelated_moco.md compares the
    views.

    Args:
        crops: function that makes the two views, such as `CropViews`; it returns the views and a target with
            ``warp_1``, ``warp_2`` and ``foreground_1``.
        regions: number of regions per sample, at least 1.
        overdraw: number of points that are tried for each region, at least 1.
    """

    @knob_types
    def __init__(self, crops: Callable, regions: int = 20, overdraw: float = 4.0) -> None:
        self.crops, self.regions, self.overdraw = crops, regions, overdraw

    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Return the views and the target of a batch.

        The views (``view_1``, ``view_2``, …) and the target (``warp_1``, ``warp_2``, ``foreground_1``, …) come from
        `crops`; ``regions`` are added to the target.
        """
        views, target = self.crops(batch)
        warps = target["warp_1"], target["warp_2"]
        return views, {**target, "regions": draw_regions(*warps, self.regions, self.overdraw, target["foreground_1"])}

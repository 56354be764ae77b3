"""Transformer transfer: MoCo v3 on a Swin encoder that starts from supervised weights.

Z. Xu, Y. Dai, F. Liu, B. Wu, W. Chen, L. Shi, Segmentation of Parotid Gland Tumors Using Multimodal MRI and Contrastive
Learning, arXiv 2208.12413 (2022); the journal form calls the method Swin MoCo (Medical Physics, doi 10.1002/mp.17128).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from monai.networks.layers import DropPath
from monai.networks.nets import SwinUNETR
from torch import Tensor, nn

from medcl_monai.knobs import knob_types
from medcl_monai.losses.local import LocalInfoNCELoss
from medcl_monai.losses.mocov3 import MoCoV3Loss
from medcl_monai.losses.terms import TermLoss
from medcl_monai.methods.base import PretrainingNetwork, Watched, names_beginning_with
from medcl_monai.networks.encode import decode, encode, encoder_parts, encoder_widths, with_parts
from medcl_monai.networks.heads import normed_projector, pointwise_head, pooled
from medcl_monai.networks.merging import MARK
from medcl_monai.networks.momentum import MomentumCopy
from medcl_monai.networks.swin_unet import SwinUNet
from medcl_monai.transforms.intensity import standardise
from medcl_monai.transforms.regions import draw_regions

DENSE_HIDDEN, DENSE_DIM = 256, 128
STEM = "swinViT.patch_embed.proj."


class SwinMoCo(PretrainingNetwork):
    """MoCo v3 on the Swin encoder of a segmenter: queries with a predictor, keys of a momentum copy, no queue.

    Encoder, pooled last map, projector and predictor make the queries of both views; momentum copies of encoder and
    projector make the keys (Chen, Xie and He 2021, https://arxiv.org/abs/2104.02057). With a `decoder_level`, the
    decoder learns too: a map of the decoder makes dense queries and keys of each position. The dense part is this
    project's answer to an experiment of the paper that was never published.

    Differences from the authors' code: the copy skips no blocks; the patch projection can be frozen (MoCo v3); the
    heads' batch norm is over all processes.

    Args:
        backbone: a `SwinUNet`, or MONAI's SwinUNETR, of which ``swinViT`` is trained.
        projector_width: width of the hidden layers of projector and predictor, in channels, at least 1.
        projection_dim: width of queries and keys, in channels, at least 1.
        momentum: share of its old weights that the copy keeps at the first optimiser step, 0 to 1; `MomentumSchedule`
            raises the share to 1. Over a run of n steps, exp(-(1 - momentum) n / 2) should be at most 0.15.
        freeze_patch: whether the patch projection keeps its values, which makes the training of transformers stable
            (Chen, Xie and He 2021, section 4.1).
        freeze_encoder: whether the encoder keeps its values and the decoder alone learns, in a second stage; then there
            are no pooled queries, and `decoder_level` is needed.
        decoder_level: number of the decoder's map that is contrasted at each position, 0 (coarsest) to 2; None or
            "none": the decoder does not learn.
        skip_drop: probability that the dense queries of a sample are made without its skip connections, 0 to 1; the
            decoder then cannot find a position by what the skip connections show.

    Raises:
        ValueError: a number is out of range, the encoder is frozen without a decoder that learns, or the decoder of
            this backbone cannot learn; in `forward`: the views hold different numbers of samples.
    """

    @knob_types
    def __init__(
        self,
        backbone: SwinUNet | SwinUNETR,
        projector_width: int = 4096,
        projection_dim: int = 256,
        momentum: float = 0.99,
        freeze_patch: bool = False,
        freeze_encoder: bool = False,
        decoder_level: int | None = None,
        skip_drop: float = 0.0,
    ) -> None:
        super().__init__()
        _check(backbone, projector_width, projection_dim, decoder_level, skip_drop, freeze_encoder)
        self.backbone, self.freeze_patch, self.freeze_encoder = backbone, freeze_patch, freeze_encoder
        self.decoder_level, self.skip_drop = decoder_level, skip_drop
        width = encoder_widths(backbone)[-1]
        if not freeze_encoder:
            self.projector = normed_projector((width, projector_width, projector_width, projection_dim))
            self.predictor = normed_projector((projection_dim, projector_width, projection_dim))
        if decoder_level is not None:
            dims, channels = backbone.spatial_dims, encoder_widths(backbone)[2 - decoder_level]
            self.dense_projector = pointwise_head(dims, channels, DENSE_HIDDEN, DENSE_DIM)
            self.dense_predictor = pointwise_head(dims, DENSE_DIM, DENSE_HIDDEN, DENSE_DIM)
        self.freeze_untrained()
        self.momentum_copy = MomentumCopy(self._parts(), momentum)
        _without_drop_path(self.momentum_copy)
        self.momentum_copy.follow_loads_of(backbone, self._parts)

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Embed both views by the network and by its copy.

        Args:
            views: ``view_1`` and ``view_2`` (B, C, *S), ``subject`` and ``position`` (B,).

        Returns:
            ``query_1``, ``query_2``, ``key_1``, ``key_2`` (B, projection_dim), not normalised; with a decoder that
            learns also ``dense_query_1``, … (B, 128, *L); ``features`` (2B, C), the pooled last map, and ``projection``
            (2B, projection_dim), without gradient; ``subject``, ``position``.
        """
        if len(views["view_1"]) != len(views["view_2"]):
            raise ValueError(f"SwinMoCo: view_1 holds {len(views['view_1'])} samples, view_2 {len(views['view_2'])}")
        both = torch.cat([views["view_1"], views["view_2"]])  # layer norm only: one pass equals two
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            maps = encode(self.backbone, both)
        features = pooled(maps[-1])
        output = {"features": features.detach(), "subject": views["subject"], "position": views["position"]}
        copies = self.momentum_copy.copies
        with torch.no_grad():
            shadow = with_parts(self.backbone, {name: copies[name] for name in self._modules_of_backbone()})
            key_maps = encode(shadow, both)
        if not self.freeze_encoder:
            output |= self._pooled(features, key_maps[-1])
        if self.decoder_level is not None:
            output |= self._dense(maps, key_maps, shadow)
        return output

    def update(self, outputs: Sequence[Mapping[str, Tensor]]) -> None:
        """Move the momentum copy after an optimiser step."""
        self.momentum_copy.update(self._parts())

    def watched(self) -> Watched:
        """Return the pooled last map and the projection; query and key of the first view are the pair."""
        if self.freeze_encoder:
            return Watched(("dense_query_1", "dense_query_2"))
        return Watched(("features", "projection"), (("query_1", "key_2"),))

    def trained_parts(self) -> tuple[str, ...]:
        """Return the names of the encoder's tensors, and of the decoder's up to the map that learns."""
        encoder = () if self.freeze_encoder else self._encoder_names()
        frozen = STEM if self.freeze_patch else ()
        return tuple(name for name in encoder if not name.startswith(frozen)) + self._decoder_names()

    def shared_parts(self) -> tuple[str, ...]:
        """Return the names of all tensors of the encoder, frozen ones included, and of the decoder that learned.

        A mark of the order of merging (`LegacyPatchMerging`) is shared too.
        """
        marks = tuple(name for name in self.backbone.state_dict() if name.endswith(MARK))
        return (*self._encoder_names(), *marks, *self._decoder_names())

    def _encoder_names(self) -> tuple[str, ...]:
        prefixes = [f"{name}." for name in encoder_parts(self.backbone)]
        return self._floating(names_beginning_with(self.backbone, prefixes))

    def _decoder_names(self) -> tuple[str, ...]:
        if self.decoder_level is None:
            return ()
        stages = range(self.decoder_level + 1)
        prefixes = [f"decoder.{part}.{stage}." for part in ("expand", "skip", "layers_up") for stage in stages]
        return self._floating(names_beginning_with(self.backbone, prefixes))

    def _floating(self, names: Sequence[str]) -> tuple[str, ...]:
        tensors = self.backbone.state_dict()
        return tuple(name for name in names if tensors[name].is_floating_point())

    def _modules_of_backbone(self) -> tuple[str, ...]:
        return (*encoder_parts(self.backbone), *(() if self.decoder_level is None else ("decoder",)))

    def _parts(self) -> dict[str, nn.Module]:
        """Return, by name, the modules that the momentum copy follows."""
        parts = {name: self.backbone.get_submodule(name) for name in self._modules_of_backbone()}
        heads = ("projector", "dense_projector")
        return parts | {name: getattr(self, name) for name in heads if hasattr(self, name)}

    def _pooled(self, features: Tensor, key_map: Tensor) -> dict[str, Tensor]:
        """Return queries and keys of the pooled maps; the heads see one view at a time, for their batch norm."""
        projections = [self.projector(half) for half in features.chunk(2)]
        output = {"projection": torch.cat(projections).detach()}
        output |= {f"query_{view}": self.predictor(part) for view, part in enumerate(projections, 1)}
        with torch.no_grad():
            project = self.momentum_copy["projector"]
            return output | {f"key_{view}": project(half) for view, half in enumerate(pooled(key_map).chunk(2), 1)}

    def _dense(self, maps: list[Tensor], key_maps: list[Tensor], shadow: nn.Module) -> dict[str, Tensor]:
        """Return dense queries and keys of the decoder's map; queries of some samples are without skip connections."""
        kept = (torch.rand(len(maps[0])) >= self.skip_drop).to(maps[0])
        skips = [x.detach() * kept[(..., *(None for _ in x.shape[1:]))] for x in maps[:-1]]
        stages = self.decoder_level + 1
        query = self.dense_predictor(self.dense_projector(decode(self.backbone, [*skips, maps[-1]], stages)))
        with torch.no_grad():
            key = self.momentum_copy["dense_projector"](decode(shadow, key_maps, stages))
        halves = {"dense_query": query.chunk(2), "dense_key": key.chunk(2)}
        return {f"{name}_{view}": half for name, pair in halves.items() for view, half in enumerate(pair, 1)}


def _check(
    backbone: nn.Module, projector_width: int, projection_dim: int, level: int | None, skip_drop: float, frozen: bool
) -> None:
    if min(projector_width, projection_dim) < 1 or not 0 <= skip_drop <= 1:
        raise ValueError(
            f"SwinMoCo: projector_width {projector_width} and projection_dim {projection_dim} must be at least 1, "
            f"skip_drop {skip_drop} 0 to 1"
        )
    if level is not None and (level not in range(3) or not isinstance(backbone, SwinUNet)):
        raise ValueError(
            f"SwinMoCo: decoder_level must be 0 to 2 or none, and the backbone a SwinUNet; "
            f"got {level} and {type(backbone).__name__}"
        )
    if frozen and level is None:
        raise ValueError("SwinMoCo: freeze_encoder leaves nothing to train: give a decoder_level")


def _without_drop_path(module: nn.Module) -> None:
    """Let no block be skipped."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DropPath):
                setattr(parent, name, nn.Identity())


class SwinMoCoLoss(TermLoss):
    """The contrast of MoCo v3 between pooled views and, on request, the dense contrast of the decoder's maps.

    ``L = contrast_weight · L_contrast + dense_weight · (L_12 + L_21) / 2``; `mocov3` and `local_infonce` give the
    formulas, and L_12 finds the regions of view 1 in view 2.

    Args:
        temperature: the cosine similarities of pooled views are divided by this number, τ; no unit, above 0.
        contrast_weight: weight of the contrast of pooled views in the sum that is minimised; no unit, 0 or more. 0: the
            term is left out.
        exclude_radius: other keys of the query's own subject are not used as negatives if their position differs from
            the query's position by at most this share of the slice axis; 0 or more. 0: only keys at the same position
            are left out; None or "none": all other keys are negatives, as in the paper.
        dense_weight: weight of the dense contrast in the sum that is minimised; no unit, 0 or more. 0: the term is left
            out.
        dense_temperature: the cosine similarities of positions are divided by this number, τ; no unit, above 0.
        min_distance: two regions nearer to each other than this distance, in either view, are not used as negatives of
            each other; in cells of the decoder's map, 0 or more.

    Raises:
        ValueError: a number is out of range.
    """

    @knob_types
    def __init__(
        self,
        temperature: float = 1.0,
        contrast_weight: float = 1.0,
        exclude_radius: float | None = None,
        dense_weight: float = 0.0,
        dense_temperature: float = 0.2,
        min_distance: float = 1.0,
    ) -> None:
        super().__init__()
        self.contrast = MoCoV3Loss(temperature, contrast_weight, exclude_radius)
        self.dense = nn.ModuleList(
            LocalInfoNCELoss(
                dense_temperature, min_distance, None, dense_weight / 2, f"dense_query_{view}", f"dense_key_{3 - view}",
                view,
            )
            for view in (1, 2)
        )
        weights = {"contrast": contrast_weight, "dense": dense_weight}
        self.contrasts = tuple(name for name, weight in weights.items() if weight > 0)

    def forward(self, output: Mapping[str, Tensor], target: Mapping[str, object]) -> dict[str, Tensor]:
        """Return the weighted terms ``contrast`` and ``dense``; a term of weight 0 is left out.

        Raises:
            ValueError: the network does not give what a term of this loss reads, or gives maps of a decoder that no
                term would train.
        """
        for term, key, knob in (("contrast", "query_1", "freeze_encoder"), ("dense", "dense_query_1", "decoder_level")):
            if term in self.contrasts and key not in output:
                raise ValueError(f"SwinMoCoLoss: the network gives no {key!r} for {term}_weight (see {knob})")
        if "dense_query_1" in output and "dense" not in self.contrasts:
            raise ValueError("SwinMoCoLoss: the network has a decoder_level, but dense_weight 0 would not train it")
        if "dense" in self.contrasts and "regions" not in target:
            raise ValueError("SwinMoCoLoss: the dense term needs regions, which the views draw: set views::regions")
        directions = [terms["local"] for terms in (loss(output, target) for loss in self.dense) if terms]
        return self.contrast(output, target) | ({"dense": sum(directions)} if directions else {})


class SwinMoCoViews:
    """Takes two independent crops of each sample, and takes brightness and contrast out of the views.

    Args:
        crops: function that makes the two views, such as `CropViews`; it returns the views and a target with
            ``warp_1``, ``warp_2`` and ``foreground_1``.
        standardise: whether each view gets mean 0 and standard deviation 1 after its changes of intensity, so that two
            views cannot be matched by their brightness.
        regions: number of regions per sample for the dense contrast, 0 or more. 0: no regions are drawn.
        overdraw: number of points that are tried for each region, at least 1.

    Raises:
        ValueError: `regions` is negative.
    """

    @knob_types
    def __init__(self, crops: Callable, standardise: bool = True, regions: int = 0, overdraw: float = 4.0) -> None:
        if regions < 0:
            raise ValueError(f"SwinMoCoViews: regions must be 0 or more, got {regions}")
        self.crops, self.standardise, self.regions, self.overdraw = crops, standardise, regions, overdraw

    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Return the views (``view_1``, ``view_2``, …) and the target (``warp_1``, …, ``regions``) of a batch."""
        views, target = self.crops(batch)
        if self.standardise:
            views |= {name: standardise(views[name]) for name in ("view_1", "view_2")}
        if self.regions:
            warps = target["warp_1"], target["warp_2"]
            target = {**target, "regions": draw_regions(*warps, self.regions, self.overdraw, target["foreground_1"])}
        return views, target

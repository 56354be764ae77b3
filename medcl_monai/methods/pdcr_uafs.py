"""PDCR and UAFS: contrast of hidden cells inside supervised training, and feature selection by confidence.

Li et al. 2022, https://arxiv.org/abs/2201.08779. The network is a MONAI segmenter with blocks of `insert_uafs`;
`FeatureTaps` brings hidden maps to the loss of this file.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from medcl_monai.knobs import knob_types
from medcl_monai.losses.cosine import check_temperature
from medcl_monai.losses.pdcr import affinity, cell_embeddings, pdcr
from medcl_monai.losses.terms import TermLoss
from medcl_monai.precision import full_precision
from medcl_monai.transforms.boxes import Cells, LabelBoxes


class PDCRLoss(TermLoss):
    r"""Adds to a segmentation loss: cells of hidden maps attract and repel each other by the labels around them.

    The terms of the segmentation loss stand beside ``intra``, pairs of cells within each tapped map, and ``cross``,
    pairs of cells of two tapped maps after a linear projection:

    .. math::
        L = L_{segmentation} + \lambda_{intra} \text{mean}_{maps, sizes} L_{PDCR}(z, z)
            + \lambda_{cross} \text{mean}_{sizes} L_{PDCR}(W_1 z_1, W_2 z_2)

    Differs from the authors' code: means instead of sums, all classes instead of the foreground alone, and projections
    without norm and ReLU, so that cosines keep their sign. A term of weight 0 is neither computed nor returned.

    Args:
        segmentation: loss of the prediction and the label; a dict of terms, or a scalar that becomes the term
            ``segmentation``.
        boxes: chooses the cells of the tapped maps and measures the class shares around them.
        intra_weight: weight λ of the term ``intra`` in the sum that is minimised; no unit, 0 or more. 0: no such term.
        cross_weight: weight λ of the term ``cross`` in the sum that is minimised; no unit, 0 or more. 0: no such term.
        cross_channels: names of the two tapped modules whose cells are compared in ``cross``, with the number of
            channels of their maps; needed if `cross_weight` is above 0.
        projection_dim: number of channels to which the cells of both maps are projected for ``cross``.
        temperature: τ, divides the cosine similarities; no unit, above 0.
        pair_loss: `pdcr`, as published, or `balanced_pdcr`, in which rare classes pull and push as frequent ones do;
            None: `pdcr`.
        centre_embeddings: whether the mean embedding of an image's valid cells is subtracted before the cosine.

    Raises:
        ValueError: a number is out of range, or `cross_channels` does not name two taps with equally many box sizes;
            in `forward`: the output lacks the prediction or a tapped map, a map has one cell or other channels than
            `cross_channels` says, or one cell alone is chosen.
    """

    @knob_types
    def __init__(
        self,
        segmentation: nn.Module,
        boxes: LabelBoxes,
        intra_weight: float = 0.01,
        cross_weight: float = 0.0,
        cross_channels: Mapping[str, int] | None = None,
        projection_dim: int = 64,
        temperature: float = 0.5,
        pair_loss: Callable | None = None,
        centre_embeddings: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if intra_weight < 0 or cross_weight < 0:
            raise ValueError(f"PDCRLoss: weights must be 0 or more, got {intra_weight} and {cross_weight}")
        self.segmentation, self.boxes = segmentation, boxes
        self.weights = {"intra": intra_weight, "cross": cross_weight}
        self.contrasts = tuple(name for name, weight in self.weights.items() if weight > 0)
        self.watched = tuple(boxes.sides)
        self.temperature, self.centre_embeddings = temperature, centre_embeddings
        self.pair_loss = pdcr if pair_loss is None else pair_loss
        self.crossed = _crossed(boxes, cross_channels) if cross_weight > 0 else ()
        self.cross_channels = dict(cross_channels or {})
        self.projectors = nn.ModuleList(
            nn.Linear(self.cross_channels[name], projection_dim, bias=False) for name in self.crossed
        )

    def forward(self, output: Mapping[str, Tensor] | Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the terms of the segmentation, ``intra`` and ``cross``.

        Args:
            output: the prediction under ``pred`` and a map (B, C, *S) per tap, as `FeatureTaps` returns them.
            target: label map (B, 1, *S).
        """
        if not isinstance(output, Mapping):
            raise ValueError(
                "PDCRLoss needs the prediction and its taps: set train::inferer to medcl_monai.FeatureTaps "
                "(a sliding-window inferer in training would keep one window's maps)"
            )
        segmentation = self.segmentation(output["pred"], target)
        terms = {"segmentation": segmentation} if isinstance(segmentation, Tensor) else dict(segmentation)
        if not self.contrasts:
            return terms
        maps = self._maps(output)
        cells = self._cells(maps, target)
        embeddings = {name: cell_embeddings(maps[name], cells[name].index) for name in maps}
        if self.weights["intra"] > 0:
            values = [self._contrast((z, cells[name]), (z, cells[name])) for name, z in embeddings.items()]
            terms["intra"] = self.weights["intra"] * torch.stack(values).mean()
        if self.weights["cross"] > 0:
            pair = [
                (project(embeddings[name], layer.weight), cells[name])
                for name, layer in zip(self.crossed, self.projectors, strict=True)
            ]
            terms["cross"] = self.weights["cross"] * self._contrast(*pair)
        return terms

    def _maps(self, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        maps = {}
        for name in self.boxes.sides:
            if name not in output:
                raise ValueError(f"PDCRLoss: the output has no tap {name!r}, but {list(output)}: FeatureTaps names it")
            maps[name] = output[name]
            if name in self.crossed and maps[name].shape[1] != self.cross_channels[name]:
                raise ValueError(
                    f"PDCRLoss: cross_channels gives tap {name!r} {self.cross_channels[name]} channels, "
                    f"the map has {maps[name].shape[1]}"
                )
            if maps[name].shape[2:].numel() < 2:
                raise ValueError(
                    f"PDCRLoss: tap {name!r} has one cell at size {tuple(output['pred'].shape[2:])}; "
                    "tap an earlier layer or enlarge roi_size"
                )
        return maps

    def _cells(self, maps: Mapping[str, Tensor], label: Tensor) -> dict[str, Cells]:
        cells = self.boxes(label, {name: feature_map.shape[2:] for name, feature_map in maps.items()})
        for name, chosen in cells.items():
            if chosen.index.shape[1] < 2:
                raise ValueError(
                    f"PDCRLoss: number {self.boxes.number} gives tap {name!r} one cell, and no pair; raise number"
                )
        return cells

    def _contrast(self, first: tuple[Tensor, Cells], second: tuple[Tensor, Cells]) -> Float[Tensor, ""]:
        """Compute the pair loss of two sets of cells; each set is its embeddings and the `Cells`."""
        (z_1, cells_1), (z_2, cells_2) = first, second
        if self.centre_embeddings:
            z_1, z_2 = centred(z_1, cells_1.valid.any(1)), centred(z_2, cells_2.valid.any(1))
        agreement = affinity(cells_1.shares, cells_2.shares)
        return self.pair_loss(z_1, z_2, agreement, self.temperature, cells_1.valid, cells_2.valid)


def centred(
    embeddings: Float[Tensor, "batch cells channels"], counted: Bool[Tensor, "batch cells"]
) -> Float[Tensor, "batch cells channels"]:
    """Subtract, in each image, the mean embedding of the cells that count."""
    weights = counted[..., None].to(embeddings)
    return embeddings - (embeddings * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)


@full_precision
def project(
    embeddings: Float[Tensor, "batch cells channels"], weight: Float[Tensor, "dim channels"]
) -> Float[Tensor, "batch cells dim"]:
    """Project the cells linearly, in fp32 at least: the same as a convolution of kernel size 1 before the sampling."""
    return embeddings @ weight.to(embeddings).mT


def _crossed(boxes: LabelBoxes, channels: Mapping[str, int] | None) -> tuple[str, ...]:
    names: Sequence[str] = tuple(channels or ())
    if len(names) != 2 or not set(names) <= set(boxes.sides):
        raise ValueError(f"PDCRLoss: cross_channels must name two of the taps {list(boxes.sides)}, got {list(names)}")
    counts = {name: len(boxes.sides[name]) for name in names}
    if len(set(counts.values())) != 1:
        raise ValueError(f"PDCRLoss: the taps of cross need equally many box sides, got {counts}")
    return tuple(names)

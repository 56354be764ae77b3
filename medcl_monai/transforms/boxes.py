"""Boxes of a label map around the cells of a feature map, and the share of each class in each box."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from medcl_monai.knobs import knob_types


class Cells(NamedTuple):
    """Cells of a feature map, with what the label holds around them.

    Attributes:
        index: place of each cell in the flattened map, (B, N) int64.
        shares: share of each class among the labelled voxels of each box, (B, R, N, K) for R box sizes.
        valid: whether a box holds a labelled voxel, (B, R, N) bool.
    """

    index: Tensor
    shares: Tensor
    valid: Tensor


class LabelBoxes:
    """Chooses cells of hidden feature maps, and measures which classes the label holds around each of these cells.

    The patches of Li et al. 2022 (https://arxiv.org/abs/2201.08779): no patch is cut out of a feature map; a patch is a
    box of the label around the place in the image at which a cell looks. The cells form a regular grid over the map.

    Differences from the authors' code: a share counts the labelled voxels inside the label (the code divides boxes at
    the border by their full volume), rows and columns are not exchanged, all classes count, and cells at the rim are
    kept.

    Args:
        sides: for each tapped module, by name, the sides of its boxes in voxels of the label, at least 1; one loss per
            side. A side is one number, or one number per axis. Several sides such as 5, 7, 9 are the paper's hierarchy
            (H-PDCR); one side equal to the receptive field is RF-PDCR.
        num_classes: number of classes, background included, at least 2.
        number: number of cells that are aimed at per image and map, at least 1; the cells per axis are the rounded root
            of this number, and at most the cells that the map has.
        foreground_share: share of the cells, 0 to 1, that are drawn anew in each step among those cells whose smallest
            box holds foreground; the other cells are drawn among all. None: the regular grid.
        centre: where a cell looks within its stride: 0.5 the middle, which pooling and patch embedding give; 0 the
            first voxel, which strided convolutions of kernel size 3 give.
        ignore_label: label value that counts as no class; None: no such value. Values outside the classes count as no
            class in any case.

    Raises:
        ValueError: a number is out of range, or there are no sides; in a call: a box is larger than the label.

    Example:
        >>> label = torch.zeros(1, 1, 8, 8)
        >>> label[..., :4] = 1
        >>> (cells,) = LabelBoxes({"down_1": [2]}, num_classes=2, number=4)(label, {"down_1": (4, 4)}).values()
        >>> cells.index.tolist(), cells.shares[0, 0, :, 1].tolist()
        ([[5, 7, 13, 15]], [1.0, 0.0, 1.0, 0.0])
    """

    @knob_types
    def __init__(
        self,
        sides: Mapping[str, Sequence[int | Sequence[int]]],
        num_classes: int,
        number: int = 64,
        foreground_share: float | None = None,
        centre: float = 0.5,
        ignore_label: int | None = None,
    ) -> None:
        flat = [side for listed in sides.values() for entry in listed for side in _as_list(entry)]
        if not flat or not all(sides.values()) or min(flat) < 1:
            raise ValueError(f"LabelBoxes: sides must give each tap one or more sides of at least 1, got {dict(sides)}")
        if num_classes < 2 or number < 1 or not 0 <= centre <= 1:
            raise ValueError(
                "LabelBoxes: num_classes must be at least 2, number at least 1 and centre 0 to 1, "
                f"got {num_classes}, {number} and {centre}"
            )
        if foreground_share is not None and not 0 <= foreground_share <= 1:
            raise ValueError(f"LabelBoxes: foreground_share must be 0 to 1, got {foreground_share}")
        self.sides = {name: list(listed) for name, listed in sides.items()}
        self.num_classes, self.number, self.centre = num_classes, number, centre
        self.foreground_share, self.ignore_label = foreground_share, ignore_label

    def __call__(self, label: Tensor, sizes: Mapping[str, Sequence[int]]) -> dict[str, Cells]:
        """Return the cells of each map.

        Args:
            label: label map (B, 1, *S) as the loss sees it, after augmentation; whole numbers of any type.
            sizes: spatial size of the feature map of each tap, by name.
        """
        label = label.as_subclass(Tensor)[:, 0]
        if self.ignore_label is not None:
            label = label.masked_fill(label == self.ignore_label, -1)
        everywhere = self.foreground_share is not None
        places = {
            name: [cell_places(side if everywhere else count, side)
                   for side, count in zip(size, cells_per_axis(self.number, size), strict=True)]
            for name, size in sizes.items()
        }
        bounds = {name: self._bounds(name, places[name], size, label.shape[1:]) for name, size in sizes.items()}
        shares = class_shares(label, bounds, self.num_classes)
        cells = {}
        for name, size in sizes.items():
            valid = shares[name].sum(-1) > 0
            index = _flat(places[name], size).to(label.device).expand(len(label), -1)
            cells[name] = Cells(index, shares[name], valid)
            if everywhere:
                count = math.prod(cells_per_axis(self.number, size))
                cells[name] = self._drawn(cells[name], count, self._smallest(name, len(size)))
        return cells

    def _bounds(
        self, name: str, places: Sequence[Tensor], size: Sequence[int], label_size: Sequence[int]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return begin and end of the boxes along each axis, as `box_bounds` does, two (R, N_axis) tensors per axis."""
        sides = [_per_axis(entry, len(label_size)) for entry in self.sides[name]]
        for entry in sides:
            if large := [side for side, extent in zip(entry, label_size, strict=True) if side > extent]:
                raise ValueError(
                    f"LabelBoxes: box side {large[0]} of the tap {name!r} is larger than the label "
                    f"{tuple(label_size)}, which is as large as the sample (roi_size)"
                )
        by_axis = zip(places, size, label_size, zip(*sides, strict=True), strict=True)
        return [box_bounds(*of_axis, self.centre) for of_axis in by_axis]

    def _smallest(self, name: str, axes: int) -> int:
        volumes = [math.prod(_per_axis(entry, axes)) for entry in self.sides[name]]
        return volumes.index(min(volumes))

    def _drawn(self, cells: Cells, count: int, smallest: int) -> Cells:
        """Draw `count` of all cells; the wanted share of these cells is drawn among the cells with foreground."""
        foreground = (cells.shares[:, smallest, :, 0] < 1) & cells.valid[:, smallest]
        random = torch.rand(2, *foreground.shape).to(foreground.device)  # drawn on the CPU, as all random numbers
        first = (random[0] + foreground).topk(round(self.foreground_share * count)).indices
        others = random[1].scatter(1, first, -1.0).topk(count - first.shape[1]).indices
        chosen = torch.cat([first, others], 1)
        columns = chosen[:, None].expand(-1, cells.valid.shape[1], -1)
        shares = cells.shares.gather(2, columns[..., None].expand(*columns.shape, self.num_classes))
        return Cells(cells.index.gather(1, chosen), shares, cells.valid.gather(2, columns))


def cells_per_axis(number: int, size: Sequence[int]) -> list[int]:
    """Return how many cells are taken along each axis of a map, so that their product is near `number`.

    Example:
        >>> cells_per_axis(64, (32, 32)), cells_per_axis(64, (24, 24, 3))
        ([8, 8], [4, 4, 3])
    """
    return [min(side, max(1, round(number ** (1 / len(size))))) for side in size]


def cell_places(count: int, side: int) -> Integer[Tensor, " count"]:
    """Return `count` evenly spaced cells of an axis of `side` cells.

    Example:
        >>> cell_places(4, 32).tolist()
        [4, 12, 20, 28]
    """
    return (2 * torch.arange(count) + 1) * side // (2 * count)


def box_bounds(
    cells: Integer[Tensor, " cells"], side: int, extent: int, boxes: Sequence[int], centre: float
) -> tuple[Integer[Tensor, "sizes cells"], Integer[Tensor, "sizes cells"]]:
    """Return where the boxes around cells begin and end along one axis, clipped to the label.

    Args:
        cells: cells along the axis of the map.
        side: number of cells of the map along the axis.
        extent: number of voxels of the label along the axis.
        boxes: side of the boxes in voxels, one per size.
        centre: as in `LabelBoxes`.

    Returns:
        The first voxel of each box, and the voxel after the last.

    Example:
        >>> [bounds.tolist() for bounds in box_bounds(torch.tensor([0, 3]), 16, 64, [5, 9], centre=0.5)]
        [[[0, 12], [0, 10]], [[5, 17], [7, 19]]]
    """
    middle = (cells * extent + (extent - side) * centre) / side
    sizes = torch.tensor(list(boxes))[:, None]
    low = torch.floor(middle.double() - (sizes - 1) / 2 + 0.5).long()
    return low.clamp(0, extent), (low + sizes).clamp(0, extent)


@torch.no_grad()
def class_shares(
    label: Tensor,
    bounds: Mapping[str, Sequence[tuple[Tensor, Tensor]]],
    num_classes: int,
) -> dict[str, Float[Tensor, "batch sizes cells classes"]]:
    """Measure the share of each class among the labelled voxels of boxes that form grids.

    A grid of boxes is a product of intervals along the axes, so a sum over boxes is one matrix product per axis with
    the intervals as bands of ones; there is no loop over boxes. One class is counted at a time, so the memory does not
    grow with the classes.

    Args:
        label: label values (B, *S) of any type; values outside 0 to `num_classes` − 1 count as no class.
        bounds: for each map, by name, begin and end of the boxes along each axis, as `box_bounds` returns them.
        num_classes: number of classes, K.

    Returns:
        The shares by the map's name; a box without a labelled voxel has only zeros.
    """
    bands = {name: [_band(*pair, extent, label.device) for pair, extent in zip(axes, label.shape[1:], strict=True)]
             for name, axes in bounds.items()}
    last = torch.cat([axes[-1].flatten(0, 1) for axes in bands.values()])
    rows = [axes[-1].shape[:2].numel() for axes in bands.values()]
    counts: dict[str, list[Tensor]] = {name: [] for name in bounds}
    label = label.float()  # comparisons of whole numbers into a buffer of fp32 are slow
    inside = torch.empty_like(label)  # one buffer for all classes
    with torch.autocast(label.device.type, enabled=False):
        for value in range(num_classes):
            torch.eq(label, value, out=inside)
            sums = (last @ inside.flatten(0, -2).mT).unflatten(1, label.shape[:-1])
            for (name, axes), part in zip(bands.items(), sums.split(rows), strict=True):
                counts[name].append(_over_other_axes(part.unflatten(0, axes[-1].shape[:2]), axes[:-1]))
    stacked = {name: torch.stack(values, -1) for name, values in counts.items()}
    return {name: (value / value.sum(-1, keepdim=True).clamp(min=1)).float() for name, value in stacked.items()}


def _over_other_axes(part: Tensor, bands: Sequence[Tensor]) -> Tensor:
    """Sum over the other axes: (R, G, B, S_1, …) to counts (B, R, N).

    The last product is in fp64: on a GPU that is allowed TF32, a count above 2^11 would be rounded in fp32.
    """
    if len(bands) == 2:
        part = torch.einsum("rkbxy,rjy->rjkbx", part, bands[1]).flatten(1, 2)
    return torch.einsum("rmbx,rix->brim", part.double(), bands[0].double()).flatten(2)


def _band(low: Tensor, high: Tensor, extent: int, device: torch.device) -> Float[Tensor, "sizes cells extent"]:
    voxel = torch.arange(extent)
    return ((voxel >= low[..., None]) & (voxel < high[..., None])).float().to(device)


def _flat(places: Sequence[Tensor], size: Sequence[int]) -> Integer[Tensor, " cells"]:
    """Return the flat index of each cell of a grid, in row-major order."""
    index = torch.zeros(1, dtype=torch.int64)
    for cells, side in zip(places, size, strict=True):
        index = (index[:, None] * side + cells).flatten()
    return index


def _per_axis(side: int | Sequence[int], axes: int) -> list[int]:
    listed = _as_list(side)
    if len(listed) not in (1, axes):
        raise ValueError(f"LabelBoxes: box side {listed} must be one number, or one per axis of a {axes}D label")
    return listed * axes if len(listed) == 1 else listed


def _as_list(side: int | Sequence[int]) -> list[int]:
    return [side] if isinstance(side, int) else list(side)

"""Pictures of views, similarities, spectra and segmentations.

The functions use no global state of Matplotlib, so that several threads may draw at the same time.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

COLOURS = ("#e69f00", "#56b4e9", "#d55e00", "#f0e442", "#cc79a7", "#009e73", "#0072b2")  # palette of Okabe and Ito


def overlay_picture(
    image: np.ndarray,
    label: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    path: str | Path,
    structures: Mapping[str, str],
) -> None:
    """Draw one slice: the image, the label and the prediction of each network side by side, with a legend.

    Args:
        image: intensities of the slice, (X, Y).
        label: label values of the slice, (X, Y).
        predictions: label map (X, Y) of each network, by the name of the network.
        path: PNG file that is written.
        structures: name of each structure, by its label value.
    """
    values = [int(value) for value in structures]
    colours = {value: COLOURS[k % len(COLOURS)] for k, value in enumerate(values)}
    panels = {"image": None, "label": label, **predictions}
    figure, axes = _axes(1, len(panels), 3.4)
    for axis, (title, regions) in zip(axes[0], panels.items(), strict=True):
        _show(axis, image, title)
        for value in values if regions is not None else ():
            inside = np.where(regions == value, 1.0, np.nan)
            axis.imshow(inside.T, origin="lower", cmap=ListedColormap([colours[value]]), alpha=0.55, vmin=0, vmax=1)
    legend = [Patch(color=colours[int(value)], label=name) for value, name in structures.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), fontsize=8, frameon=False)
    _save(figure, path)


def views_picture(views: Mapping[str, Tensor]) -> Figure:
    """Draw the views of some samples: one row for each sample, one column for each view.

    Args:
        views: images (B, *S) of each view, by the name of the view; of a volume, the middle slice is drawn.
    """
    samples = len(next(iter(views.values())))
    figure, axes = _axes(samples, len(views), 1.8)
    for column, (name, images) in enumerate(views.items()):
        for row, image in enumerate(images):
            _show(axes[row][column], _middle(image), name if row == 0 else "")
    return figure


def similarity_map(feature_map: Tensor, voxel: Sequence[int]) -> Tensor:
    """Return the cosine similarity, -1 to 1, of every position of a map (C, *S) to the position `voxel`, as (*S).

    Raises:
        IndexError: `voxel` lies outside the map.
    """
    unit = F.normalize(feature_map.detach().float(), dim=0)
    return (unit * unit[(slice(None), *voxel)][(..., *(None for _ in voxel))]).sum(0)


def similarity_picture(image: Tensor, feature_map: Tensor, voxel: Sequence[int], path: str | Path) -> None:
    """Draw where the features are similar to the features at a chosen place: the image beside the similarity map.

    The similarity map is enlarged to the grid of the image.

    Args:
        image: intensities (*S); of a volume, the slice that contains `voxel` is drawn.
        feature_map: features (C, *s) of the same field of view.
        voxel: the chosen place, as indices into the grid of the image.
        path: PNG file that is written.
    """
    size = image.shape
    cell = [place * small // large for place, small, large in zip(voxel, feature_map.shape[1:], size, strict=True)]
    mode = "bilinear" if image.ndim == 2 else "trilinear"
    similar = F.interpolate(similarity_map(feature_map, cell)[None, None], size=size, mode=mode)[0, 0]
    flat = (lambda x: x) if image.ndim == 2 else (lambda x: x[..., voxel[-1]])
    figure, axes = _axes(1, 2, 3.4)
    _show(axes[0][0], flat(image).numpy(), "image")
    shown = axes[0][1].imshow(flat(similar).numpy().T, origin="lower", cmap="viridis", vmin=-1, vmax=1)
    axes[0][1].set(title="similarity to +", xticks=[], yticks=[])
    for axis in axes[0]:
        axis.plot(voxel[0], voxel[1], "r+", markersize=10)
    figure.colorbar(shown, ax=axes[0][1], shrink=0.8)
    _save(figure, path)


def spectrum_picture(spectra: Mapping[str, Tensor]) -> Figure:
    """Draw the singular values of embeddings relative to the largest value, on a log scale.

    Args:
        spectra: singular values of each embedding, largest first, by the name of the embedding.
    """
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.add_subplot()
    for name, values in spectra.items():
        axis.semilogy((values / values.max().clamp(min=1e-30)).clamp(min=1e-7).cpu().numpy(), label=name)
    axis.set(xlabel="direction", ylabel="singular value / largest")
    axis.legend()
    return figure


def confidence_picture(images: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """Draw the confidence maps of some samples: one row per sample, the image first, then one column per map.

    Args:
        images: images (B, *S); of a volume, the middle slice is drawn.
        maps: confidence (B, *s), 0 to 1, by the name of the site, of any size of the same field of view.
    """
    figure, axes = _axes(len(images), 1 + len(maps), 1.8)
    for row, image in enumerate(images):
        _show(axes[row][0], _middle(image), "image" if row == 0 else "")
        for column, (name, values) in enumerate(maps.items(), 1):
            shown = axes[row][column].imshow(_middle(values[row]).T, origin="lower", cmap="viridis", vmin=0, vmax=1)
            axes[row][column].set(title=name if row == 0 else "", xticks=[], yticks=[])
            axes[row][column].title.set_fontsize(8)
    figure.colorbar(shown, ax=axes[:, -1], shrink=0.8, label="confidence")
    return figure


def affinity_picture(affinities: Mapping[str, Tensor]) -> Figure:
    """Draw a histogram of the affinities of pairs of cells, as shares of all pairs, on a log scale.

    Args:
        affinities: affinities, 0 to 1, as a vector, by the name of the tapped module; an empty vector is left out.
    """
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.add_subplot()
    for name, values in affinities.items():
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            axis.hist(values.cpu().numpy(), bins=20, range=(0, 1), weights=weights, histtype="step", label=name)
            axis.legend()
    axis.set(xlabel="affinity of two cells", ylabel="share of pairs", yscale="log")
    return figure


def _middle(image: Tensor) -> np.ndarray:
    """Return an image, or the middle slice of a volume along its last axis."""
    image = image.detach().float().cpu()
    return (image if image.ndim == 2 else image[..., image.shape[-1] // 2]).numpy()


def _axes(rows: int, columns: int, side: float) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(side * columns, side * rows + 0.5), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axis: object, image: np.ndarray, title: str) -> None:
    low, high = np.percentile(image, [1, 99.5])
    axis.imshow(image.T, origin="lower", cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    axis.set(title=title, xticks=[], yticks=[])


def _save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


__all__ = [
    "affinity_picture",
    "confidence_picture",
    "overlay_picture",
    "similarity_map",
    "similarity_picture",
    "spectrum_picture",
    "views_picture",
]

"""Samples for training: 2D slices or 3D crops of volumes, each with its position and its subject."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from medcl_monai.data.cache import VolumeCache
from medcl_monai.data.slabs import slab_of
from medcl_monai.knobs import knob_types


class SliceDataset(Dataset):
    """Slices of volumes perpendicular to one axis (2D), or random crops of volumes (3D), all of the same size.

    An item is ``{"image": (C, *S) float32, "label": (1, *S) uint8, "position": float64, "subject": int64}``, all plain
    tensors. An item has a ``label`` if its entry has one. The ``position`` of slice k of D slices is (k + 0.5)/D; the
    ``position`` of a 3D crop is that of the crop's centre along `slice_axis`, as a share of the volume's length.
    ``subject`` is the index of the subject among the sorted names of all subjects.

    An image smaller than `size` is padded evenly with the minimum of the volume, and its label with 0. An image larger
    than `size` is cropped at a random place. In 3D, an item is a volume, or one of several equal parts (`parts`) of the
    slice axis of a volume: then the crop's centre lies in the part, and a crop that leaves the volume is padded.

    Args:
        data: entries with the key ``image`` and optionally ``label`` and ``subject``; without ``subject``, each image
            file is a subject of its own.
        preprocessing: MONAI dictionary transforms without randomness that load, orient, resample and normalise a
            volume; they run once, and the result is cached.
        size: size of the samples in pixels (2D) or voxels (3D) after resampling, one number per axis; smaller images
            are padded, larger images are cropped at a random place.
        spatial_dims: number of spatial axes of the samples: 2 (slices) or 3 (crops).
        slice_axis: axis that the slices are perpendicular to: 0, 1 or 2 for x, y or z; in 3D, the axis along which
            positions are measured.
        augmentation: MONAI dictionary transforms with randomness, seeded for each item; None: no augmentation.
        blank: whether slices with one value throughout, such as slices beside the body, are samples too; 2D only.
        parts: number of equal parts of the slice axis, each an item of its own, at least 1; 3D only. 1: a volume is one
            item, and its crops lie inside the volume.
        cache_dir: folder of the cached volumes; None: the folder ``volumes`` in the package's cache folder.

    Attributes:
        positions: the position of each item, float64; of a part in 3D, the middle of the part.
        subjects: the name of each item's subject.

    Raises:
        ValueError: `data` is empty; `size`, `spatial_dims`, `slice_axis` or `parts` is out of range; or a volume cannot
            be used, for one of the reasons that `check_loaded` lists.
    """

    @knob_types
    def __init__(
        self,
        data: Sequence[dict[str, str]],
        preprocessing: Compose,
        size: Sequence[int],
        spatial_dims: int = 2,
        slice_axis: int = 2,
        augmentation: Compose | None = None,
        blank: bool = True,
        parts: int = 1,
        cache_dir: str | Path | None = None,
    ) -> None:
        if not data:
            raise ValueError("SliceDataset: no entries: the data set has no volume of the kind asked for (labelled?)")
        if spatial_dims not in (2, 3) or len(size) != spatial_dims or slice_axis not in (0, 1, 2):
            raise ValueError(
                f"SliceDataset: size {tuple(size)} must have spatial_dims={spatial_dims} (2 or 3) entries, "
                f"slice_axis {slice_axis} must be 0, 1 or 2"
            )
        if parts < 1 or (parts > 1 and spatial_dims == 2):
            raise ValueError(f"SliceDataset: parts must be at least 1, and 1 for slices (spatial_dims=2), got {parts}")
        self.data, self.size, self.slice_axis = data, tuple(int(side) for side in size), slice_axis
        self.spatial_dims, self.augmentation, self.parts = spatial_dims, augmentation, parts
        cache = VolumeCache(preprocessing, cache_dir)
        bar = tqdm(data, desc="volumes", disable=None, delay=2, leave=False)
        self.paths = [cache(entry) for entry in bar]
        names = sorted({_subject(entry) for entry in data})
        self._numbers = [names.index(_subject(entry)) for entry in data]
        self.minimum = [float(np.load(paths["image"], mmap_mode="r").min()) for paths in self.paths]
        self.depths = [np.load(paths["image"], mmap_mode="r").shape[1 + slice_axis] for paths in self.paths]
        counts = self.depths if spatial_dims == 2 else [parts] * len(data)
        items = [(volume, place) for volume, count in enumerate(counts) for place in range(count)]
        if parts > 1:
            items = [item for item in items if range(*self._centred(*item))]
        elif not blank and spatial_dims == 2:
            content = [self._content(paths["image"]) for paths in self.paths]
            items = [(volume, place) for volume, place in items if content[volume][place]]
        self.items = items
        counted = [counts[volume] for volume, _ in items]
        self.positions = (torch.tensor([place for _, place in items]) + 0.5).double() / torch.tensor(counted)
        self.subjects = [_subject(data[volume]) for volume, _ in items]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def foreground(self) -> Tensor:
        """Whether each item has a label value above 0: a bool tensor with one element per item."""
        by_volume = []
        for paths in self.paths:
            label = np.load(paths["label"], mmap_mode="r")[0] > 0
            others = tuple(axis for axis in range(3) if axis != self.slice_axis)
            slices = label.any(others)
            part = slab_of((torch.arange(len(slices)) + 0.5).double() / len(slices), self.parts).numpy()
            by_part = np.bincount(part, slices, minlength=self.parts)
            by_volume.append(slices if self.spatial_dims == 2 else by_part > 0)
        return torch.tensor([bool(by_volume[volume][place]) for volume, place in self.items])

    def _content(self, path: Path) -> np.ndarray:
        """Return whether each slice of a volume holds more than one value: a bool array with one element per slice."""
        image = np.moveaxis(np.load(path, mmap_mode="r"), 1 + self.slice_axis, 0)
        return image.max((1, 2, 3)) > image.min((1, 2, 3))

    def label_counts(self) -> list[np.ndarray]:
        """Count the voxels of each label value from 0 to 255, and return one array of 256 counts per entry."""
        return [np.bincount(np.load(paths["label"]).ravel(), minlength=256) for paths in self.paths]

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Tensor]:
        index, seed = (item, 0) if isinstance(item, int | np.integer) else item
        volume, place = self.items[index]
        random = np.random.default_rng(seed)
        arrays = {key: np.load(path, mmap_mode="r") for key, path in self.paths[volume].items()}
        if self.spatial_dims == 2:
            arrays = {key: array.take(place, axis=1 + self.slice_axis) for key, array in arrays.items()}
        corner = [int(random.integers(*bounds)) for bounds in self._corners(volume, place, arrays["image"].shape[1:])]
        sample = {
            key: torch.from_numpy(self._fit(array, corner, self.minimum[volume] if key == "image" else 0.0))
            for key, array in arrays.items()
        }
        if self.augmentation is not None:
            self.augmentation.set_random_state(int(seed) % 2**32)
            sample = {key: plain(value, sample[key].dtype) for key, value in self.augmentation(sample).items()}
        sample["position"] = self.positions[index] if self.spatial_dims == 2 else self._centre(volume, corner)
        sample["subject"] = torch.tensor(self._numbers[volume])
        return sample

    def _corners(self, volume: int, place: int, shape: Sequence[int]) -> list[tuple[int, int]]:
        """Return the first corner along each axis and the one after the last; a corner below 0 means padding."""
        room = [side - wanted for side, wanted in zip(shape, self.size, strict=True)]
        bounds = [(0, most + 1) if most >= 0 else (-(-most // 2), 1 - (-most // 2)) for most in room]
        if self.parts > 1:
            bounds[self.slice_axis] = self._centred(volume, place)
        return bounds

    def _centred(self, volume: int, place: int) -> tuple[int, int]:
        """Return the first corner along the slice axis whose crop has its centre in a part, and the one after the last.

        The centre, corner + side / 2, lies in [place, place + 1) · depth / parts.
        """
        side, depth = self.size[self.slice_axis], self.depths[volume]
        low, high = (-((self.parts * side - 2 * edge * depth) // (2 * self.parts)) for edge in (place, place + 1))
        return low, high

    def _fit(self, array: np.ndarray, corner: Sequence[int], fill: float) -> np.ndarray:
        ends = [(c, c + wanted, side) for c, wanted, side in zip(corner, self.size, array.shape[1:], strict=True)]
        inside = array[(slice(None), *(slice(max(first, 0), min(last, side)) for first, last, side in ends))]
        if inside.shape[1:] == self.size:
            return np.array(inside)
        fitted = np.full((array.shape[0], *self.size), fill, dtype=array.dtype)
        places = (slice(max(-first, 0), min(last, side) - first) for first, last, side in ends)
        fitted[(slice(None), *places)] = inside
        return fitted

    def _centre(self, volume: int, corner: Sequence[int]) -> Tensor:
        """Return the place of a crop's centre along the slice axis, as a share of the volume's length."""
        centre = corner[self.slice_axis] + self.size[self.slice_axis] / 2
        return torch.tensor(centre / self.depths[volume], dtype=torch.float64)


def plain(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor to a plain tensor of type `dtype`, without MONAI's metadata."""
    return torch.as_tensor(value).as_subclass(Tensor).to(dtype)


def _subject(entry: dict[str, str]) -> str:
    return str(entry.get("subject", entry["image"]))

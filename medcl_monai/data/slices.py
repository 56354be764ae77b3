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
from medcl_monai.knobs import knob_types


class SliceDataset(Dataset):
    """Slices of volumes perpendicular to one axis (2D), or one random crop per volume (3D), all of the same size.

    An item is ``{"image": (C, *S) float32, "label": (1, *S) uint8, "position": float64, "subject": int64}``, all plain
    tensors. An item has a ``label`` if its entry has one. The ``position`` of slice k of D slices is (k + 0.5)/D; the
    ``position`` of a 3D crop is that of the crop's centre along `slice_axis`, as a share of the volume's length.
    ``subject`` is the index of the subject among the sorted names of all subjects.

    An image smaller than `size` is padded evenly with the minimum of the volume, and its label with 0. An image larger
    than `size` is cropped at a random place.

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
        cache_dir: folder of the cached volumes; None: the folder ``volumes`` in the package's cache folder.

    Raises:
        ValueError: `data` is empty; `size`, `spatial_dims` or `slice_axis` is out of range; or a volume cannot be used,
            for one of the reasons that `check_loaded` lists.
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
        cache_dir: str | Path | None = None,
    ) -> None:
        if not data:
            raise ValueError("SliceDataset: no entries: the data set has no volume of the kind asked for (labelled?)")
        if spatial_dims not in (2, 3) or len(size) != spatial_dims or slice_axis not in (0, 1, 2):
            raise ValueError(
                f"SliceDataset: size {tuple(size)} must have spatial_dims={spatial_dims} (2 or 3) entries, "
                f"slice_axis {slice_axis} must be 0, 1 or 2"
            )
        self.data, self.size, self.slice_axis = data, tuple(int(side) for side in size), slice_axis
        self.spatial_dims, self.augmentation = spatial_dims, augmentation
        cache = VolumeCache(preprocessing, cache_dir)
        bar = tqdm(data, desc="volumes", disable=None, delay=2, leave=False)
        self.paths = [cache(entry) for entry in bar]
        names = sorted({_subject(entry) for entry in data})
        self.subjects = [names.index(_subject(entry)) for entry in data]
        self.minimum = [float(np.load(paths["image"], mmap_mode="r").min()) for paths in self.paths]
        depths = [np.load(paths["image"], mmap_mode="r").shape[1 + slice_axis] for paths in self.paths]
        counts = depths if spatial_dims == 2 else [1] * len(data)
        items = [(volume, place) for volume, count in enumerate(counts) for place in range(count)]
        if not blank and spatial_dims == 2:
            content = [self._content(paths["image"]) for paths in self.paths]
            items = [(volume, place) for volume, place in items if content[volume][place]]
        self.items, self.depths = items, depths

    def __len__(self) -> int:
        return len(self.items)

    @property
    def foreground(self) -> Tensor:
        """Whether each item has a label value above 0: a bool tensor with one element per item."""
        by_volume = []
        for paths in self.paths:
            label = np.load(paths["label"], mmap_mode="r")[0] > 0
            others = tuple(axis for axis in range(3) if axis != self.slice_axis)
            by_volume.append(label.any(others) if self.spatial_dims == 2 else label.any(keepdims=True).reshape(1))
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
        room = [max(side - wanted, 0) for side, wanted in zip(arrays["image"].shape[1:], self.size, strict=True)]
        corner = [int(random.integers(0, most + 1)) for most in room]
        sample = {
            key: torch.from_numpy(self._fit(array, corner, self.minimum[volume] if key == "image" else 0.0))
            for key, array in arrays.items()
        }
        if self.augmentation is not None:
            self.augmentation.set_random_state(int(seed) % 2**32)
            sample = {key: plain(value, sample[key].dtype) for key, value in self.augmentation(sample).items()}
        sample["position"] = torch.tensor(self._position(volume, place, corner), dtype=torch.float64)
        sample["subject"] = torch.tensor(self.subjects[volume])
        return sample

    def _fit(self, array: np.ndarray, corner: Sequence[int], fill: float) -> np.ndarray:
        inside = array[(slice(None), *(slice(c, c + side) for c, side in zip(corner, self.size, strict=True)))]
        if inside.shape[1:] == self.size:
            return np.array(inside)
        fitted = np.full((array.shape[0], *self.size), fill, dtype=array.dtype)
        before = [(wanted - side) // 2 for side, wanted in zip(inside.shape[1:], self.size, strict=True)]
        places = (slice(start, start + side) for start, side in zip(before, inside.shape[1:], strict=True))
        fitted[(slice(None), *places)] = inside
        return fitted

    def _position(self, volume: int, place: int, corner: Sequence[int]) -> float:
        depth = self.depths[volume]
        if self.spatial_dims == 2:
            return (place + 0.5) / depth
        side = min(self.size[self.slice_axis], depth)
        return (corner[self.slice_axis] + side / 2) / depth


def plain(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor to a plain tensor of type `dtype`, without MONAI's metadata."""
    return torch.as_tensor(value).as_subclass(Tensor).to(dtype)


def _subject(entry: dict[str, str]) -> str:
    return str(entry.get("subject", entry["image"]))

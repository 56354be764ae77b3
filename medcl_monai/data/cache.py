"""A cache of preprocessed volumes as memory-mapped arrays, and the checks that every loaded volume must pass."""

import hashlib
import logging
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from monai.data.utils import pickle_hashing
from monai.transforms import Compose

from medcl_monai.data.place import cache_folder
from medcl_monai.files import volume_hash, write_atomically

logger = logging.getLogger(__name__)
DTYPES = {"image": np.float32, "label": np.uint8}


class VolumeCache:
    """Runs the preprocessing once per volume and keeps the resulting arrays on disk.

    The name of a cached array is a hash of the source files' contents and of the transforms with their settings.
    Several processes may fill one cache at the same time, because an array is moved into place only when its file is
    complete.

    Args:
        preprocessing: MONAI dictionary transforms without randomness, for the key ``image`` and, where an entry has a
            label, the key ``label``.
        folder: folder of the cached arrays; None: the folder ``volumes`` in the package's cache folder.
    """

    def __init__(self, preprocessing: Compose, folder: str | Path | None = None) -> None:
        self.preprocessing = preprocessing
        self.folder = cache_folder() / "volumes" if folder is None else Path(folder)
        self._transform = transform_hash(preprocessing)

    def __call__(self, entry: Mapping[str, str]) -> dict[str, Path]:
        """Return the paths of an entry's preprocessed arrays (C, *S); arrays that do not exist yet are made first.

        Raises:
            ValueError: the image or the label cannot be used; `check_loaded` lists the reasons.
        """
        keys = [key for key in DTYPES if key in entry]
        content = "".join(volume_hash(Path(entry[key])) for key in keys) + self._transform
        name = hashlib.sha256(content.encode()).hexdigest()[:32]
        paths = {key: self.folder / f"{name}.{key}.npy" for key in keys}
        if not all(path.is_file() for path in paths.values()):
            loaded = check_loaded({key: entry[key] for key in keys}, self.preprocessing)
            for key, path in paths.items():
                array = np.ascontiguousarray(np.asarray(loaded[key]).astype(DTYPES[key]))
                write_atomically(path, lambda aside, array=array: _save(aside, array))
        return paths


def check_loaded(entry: Mapping[str, str], transform: Callable[[dict], dict]) -> dict:
    """Apply a transform to an entry, check the volumes as loaded and as transformed, and return the transformed entry.

    Raises:
        ValueError: a file does not exist or cannot be read; the image does not have three axes and one channel; the
            image contains NaN or infinity; the image has the same value everywhere, as loaded or as transformed; the
            label lies on another grid than the image, or contains values that are not whole numbers from 0 to 255.
    """
    steps = transform.transforms if isinstance(transform, Compose) else [transform]
    data, checked = dict(entry), False
    try:
        for step in steps:
            data = step(data)
            if not checked and all(isinstance(data[key], torch.Tensor) for key in ("image", "label") if key in data):
                _check_image(entry["image"], data["image"])
                if "label" in data:
                    _check_label(entry, data["image"], data["label"])
                checked = True
        if checked:
            _check_contrast(entry["image"], data["image"], " after preprocessing (the percentile clip?)")
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        named = ", ".join(str(entry[key]) for key in ("image", "label") if key in entry)
        missing = [str(entry[key]) for key in ("image", "label") if key in entry and not Path(entry[key]).exists()]
        what = f"{missing[0]} does not exist" if missing else f"{named} cannot be read or prepared"
        raise ValueError(f"{what}: {root_cause(error)}") from error
    return data


class _RefusedError(ValueError):
    """Raised for a volume that fails a check, to tell this failure from an error of reading."""


def _check_image(path: str, image: torch.Tensor) -> None:
    if not (image.ndim == 3 or (image.ndim == 4 and 1 in (image.shape[0], image.shape[-1]))):
        raise _RefusedError(f"{path} is {tuple(image.shape)}: three axes and one channel are expected")
    if not bool(torch.isfinite(image).all()):
        raise _RefusedError(f"{path} holds {int((~torch.isfinite(image)).sum())} values that are NaN or infinite")
    _check_contrast(path, image)


def _check_contrast(path: str, image: torch.Tensor, when: str = "") -> None:
    if float(image.min()) == float(image.max()):
        value = f"{float(image.min()):g}"
        raise _RefusedError(f"{path} holds the value {value} only{when}: an image with contrast is expected")


def _check_label(entry: Mapping[str, str], image: torch.Tensor, label: torch.Tensor) -> None:
    if tuple(image.shape[-3:]) != tuple(label.shape[-3:]):
        raise _RefusedError(
            f"{entry['label']} is {tuple(label.shape[-3:])} voxels, "
            f"its image {entry['image']} {tuple(image.shape[-3:])}"
        )
    ours, theirs = (np.asarray(volume.affine).round(3) for volume in (label, image))
    if not np.allclose(ours, theirs, atol=1e-2):
        raise _RefusedError(
            f"{entry['label']} lies on another grid than its image {entry['image']}: "
            f"affine {ours.tolist()}, expected {theirs.tolist()}"
        )
    values = label.flatten()
    if not bool(((values == values.round()) & (values >= 0) & (values <= 255)).all()):
        odd = values[(values != values.round()) | (values < 0) | (values > 255)][0]
        raise _RefusedError(f"{entry['label']} holds the value {float(odd):g}: whole numbers, 0 to 255, are expected")


def root_cause(error: BaseException) -> str:
    """Return the type and the first line of the innermost cause of an error."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def transform_hash(preprocessing: Compose) -> str:
    """Return a hash of transforms and their settings that is the same in every process.

    A function inside a transform counts by its name, not by its code: whoever changes such a function clears the cache.

    Raises:
        ValueError: a transform holds a function without a name of its own, such as a lambda.
    """
    try:
        return pickle_hashing(list(preprocessing.transforms)).decode()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"the preprocessing cannot be cached, give its functions names: {error}") from error


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)

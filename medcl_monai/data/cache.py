"""Decoded, oriented, resampled, normalised volumes as memory-mapped arrays; and the checks of what is loaded."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType

import numpy as np
import torch
from monai.transforms import Compose

from medcl_monai.data.place import cache_folder
from medcl_monai.files import volume_hash, write_atomically

logger = logging.getLogger(__name__)
DTYPES = {"image": np.float32, "label": np.uint8}


class VolumeCache:
    """Runs `preprocessing` once per volume and keeps the result, keyed by file digest and transform.

    Two processes may fill it at once: files are moved into place whole.

    Args:
        preprocessing: MONAI dictionary transforms without randomness, over ``image`` and perhaps ``label``.
        folder: of the cache; None: ``volumes`` in the package's cache folder.
    """

    def __init__(self, preprocessing: Compose, folder: str | Path | None = None) -> None:
        self.preprocessing = preprocessing
        self.folder = cache_folder() / "volumes" if folder is None else Path(folder)
        self._transform = describe(preprocessing)

    def __call__(self, entry: Mapping[str, str]) -> dict[str, Path]:
        """Paths of the arrays (C, *S) of an entry, made if they are not there.

        Raises:
            ValueError: see `check_loaded`.
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
    """The transformed entry, after checks of what was read and of what became of it.

    Raises:
        ValueError: a file cannot be read, has not three axes and one channel; the image holds NaN or infinity, or one
            value only, as read or as transformed; the label lies on another grid or holds values that are not whole
            numbers from 0 to 255.
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
    """A finding of the checks, told from errors of reading."""


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
    """Type and first line of the innermost cause."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def describe(transform: object) -> str:
    """Class names and settings of transforms as text that is the same in every process."""
    if transform is None or isinstance(transform, str | int | float | bool | bytes | type):
        return repr(transform)
    if isinstance(transform, Mapping):
        return "{" + ",".join(f"{key}:{describe(value)}" for key, value in sorted(transform.items(), key=str)) + "}"
    if isinstance(transform, list | tuple | set):
        return "[" + ",".join(describe(value) for value in transform) + "]"
    if isinstance(transform, torch.dtype | torch.device | np.dtype | np.generic):
        return repr(transform)
    if isinstance(transform, FunctionType):
        bound = [cell.cell_contents for cell in transform.__closure__ or ()]
        return describe([transform.__code__, transform.__defaults__, bound])
    if isinstance(transform, CodeType):
        return describe([transform.co_code, transform.co_names, transform.co_consts])
    if isinstance(transform, partial):
        return describe([transform.func, transform.args, transform.keywords])
    if isinstance(transform, np.ndarray | torch.Tensor):
        return repr(np.asarray(transform).tolist())
    name = f"{type(transform).__module__}.{type(transform).__qualname__}"
    settings = getattr(transform, "__dict__", None)
    if settings is None or "RandomState" in name or "enum" in str(type(type(transform))):
        return name if settings is None or "RandomState" in name else f"{name}.{transform}"
    return name + describe({key: value for key, value in settings.items() if key != "R"})


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)

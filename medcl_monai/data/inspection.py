"""Statistics of a data set, and the knobs that are suggested for the data set."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from monai.transforms import LoadImage, Orientation
from tqdm import tqdm

from medcl_monai.data.datalist import find_volumes

SLICE_AXIS = 2
PRETRAINING = ("pixel_spacing", "sample_size")  # suggested for pretrain.json; the other configs have pixel_spacing too


@dataclass(frozen=True)
class SizeRule:
    """What a bundle requires of the pixel grid of its images.

    Attributes:
        extent: side of the square, in pixels, into which slices should fit in pre-training.
        multiple: the sides of the region of interest, in pixels, must be multiples of this number.
        sampled: whether the views are cropped from larger samples; if so, slices should fit into a sample, whose size
            is the knob ``sample_size``.
        pretrains: whether the bundle pre-trains, and has a pretrain.json.
    """

    extent: int = 128
    multiple: int = 16
    sampled: bool = False
    pretrains: bool = True


@dataclass(frozen=True)
class Inspection:
    """Statistics of a data set, and suggested knobs.

    Attributes:
        folder: folder of the data set.
        volumes: number of volumes.
        subjects: number of subjects.
        labelled: number of labelled volumes.
        sizes: size of each volume in voxels after orientation to RAS, (volumes, 3).
        spacings: voxel spacing of each volume in mm after orientation to RAS, (volumes, 3).
        intensities: percentiles 0.5, 50 and 99.5 of the intensities of each volume, (volumes, 3).
        shares: label values mapped to their share of the voxels of all labels, 0 to 1.
        structures: label values mapped to the names of the structures, without background.
        knobs: names of the suggested knobs mapped to their values: structures (if the data set has any), pixel_spacing,
            roi_size and, for a bundle with samples larger than the views, sample_size.
        pretrains: whether the knobs are for a bundle that pre-trains.
    """

    folder: str
    volumes: int
    subjects: int
    labelled: int
    sizes: np.ndarray
    spacings: np.ndarray
    intensities: np.ndarray
    shares: Mapping[int, float]
    structures: Mapping[str, str]
    knobs: Mapping[str, object]
    pretrains: bool = True

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {self.volumes} volumes of {self.subjects} subjects, {self.labelled} with labels",
            f"size, voxels (RAS): {_range(self.sizes, '.0f')}",
            f"spacing, mm: {_range(self.spacings, '.3g')}",
            "intensity, percentiles 0.5 / 50 / 99.5, medians over volumes: "
            + " / ".join(f"{value:.4g}" for value in np.median(self.intensities, axis=0)),
        ]
        names = {"0": "background", **self.structures}
        lines += [
            f"label {value}: {names.get(str(value), 'no name')}, {share:.3%} of voxels"
            for value, share in self.shares.items()
        ]
        lines += ["suggested knobs:", *(f"  {name}: {value}" for name, value in self.knobs.items())]
        pasted, pretraining = (
            " ".join(f'--{name} "{value}"' for name, value in self.knobs.items() if (name in PRETRAINING) == first)
            for first in (False, True)
        )
        pasted += f' --pixel_spacing "{self.knobs["pixel_spacing"]}"'
        if self.pretrains:
            return "\n".join([*lines, f"for pretrain.json: {pretraining}", f"for the other configs: {pasted}"])
        return "\n".join([*lines, f"for train.json and inference.json: {pasted}"])


def inspect_dataset(
    dataset_dir: str | Path,
    subjects: str | None = None,
    subject_pattern: str | None = None,
    rule: SizeRule = SizeRule(),
) -> Inspection:
    """Read every volume once, and return the statistics of the data set and the suggested knobs.

    The suggested pixel spacing is the smallest of the values 0.25·2^k mm at which the 95th percentile of the side
    lengths of the axial slices fits into `rule.extent` pixels. The suggested region of interest is the smallest that
    holds all axial slices and whose sides are multiples of `rule.multiple`.

    Args:
        dataset_dir: folder of the data set: a Decathlon folder, a folder with ``imagesTr``, or any tree of volumes.
        subjects: path of a JSON file that maps the file name of each volume to a subject; None: `subject_pattern` or
            the file name gives the subject.
        subject_pattern: regular expression that is searched in the file name of each volume; its group 1 is the
            subject. None: the file name without suffix is the subject, unless `subjects` is given.
        rule: what the bundle for which the knobs are suggested requires of the pixel grid.

    Raises:
        FileNotFoundError: the folder does not exist or holds no volume, or a file of the data set is missing.
        ValueError: a volume cannot be read, a label has another size than its image, or `subjects` or `subject_pattern`
            does not fit the file names.
    """
    listed = find_volumes(dataset_dir, subjects, subject_pattern)
    entries = [*listed.training, *listed.validation, *listed.test]
    sizes, spacings, intensities, counts = [], [], [], np.zeros(256, np.int64)
    for entry in tqdm(entries, desc="reading", disable=None, delay=2, leave=False):
        image = _read(entry["image"])
        sizes.append(image.shape[1:])
        spacings.append(np.sqrt((np.asarray(image.affine)[:3, :3] ** 2).sum(0)))
        intensities.append(np.percentile(np.asarray(image), [0.5, 50, 99.5]))
        if "label" in entry:
            label = np.asarray(_read(entry["label"])).astype(np.int64).clip(0, 255)
            if label.shape[1:] != image.shape[1:]:
                raise ValueError(
                    f"{entry['label']} is {label.shape[1:]} voxels, "
                    f"{tuple(image.shape[1:])} of {entry['image']} are expected"
                )
            counts += np.bincount(label.ravel(), minlength=256)
    sizes, spacings = np.array(sizes), np.array(spacings)
    shares = {int(value): counts[value] / counts.sum() for value in np.nonzero(counts)[0]}
    structures = dict(listed.structures) or {str(value): f"structure {value}" for value in shares if value}
    return Inspection(
        folder=str(listed.folder),
        volumes=len(entries),
        subjects=len({entry["subject"] for entry in entries}),
        labelled=sum("label" in entry for entry in entries),
        sizes=sizes,
        spacings=spacings,
        intensities=np.array(intensities),
        shares=shares,
        structures=structures,
        knobs=_knobs(sizes, spacings, structures, rule),
        pretrains=rule.pretrains,
    )


def suggest_spacing(extent: float, pixels: int = 128) -> float:
    """Return the smallest spacing 0.25·2^k mm, k a whole number, at which `extent` mm fit into `pixels` pixels."""
    return 0.25 * 2.0 ** math.ceil(math.log2(extent / pixels / 0.25) - 1e-9)


def _knobs(sizes: np.ndarray, spacings: np.ndarray, structures: Mapping[str, str], rule: SizeRule) -> dict[str, object]:
    within = [axis for axis in range(3) if axis != SLICE_AXIS]
    extents = (sizes * spacings)[:, within]
    spacing = suggest_spacing(float(np.percentile(extents, 95, axis=0).max()), rule.extent)
    pixels = np.ceil(extents.max(0) / spacing - 1e-6)
    roi = [int(math.ceil(side / rule.multiple) * rule.multiple) for side in pixels]
    suggested = {"pixel_spacing": spacing, "roi_size": roi, **({"sample_size": [max(roi)] * 2} if rule.sampled else {})}
    return {"structures": dict(structures), **suggested} if structures else suggested


def _read(path: str) -> object:
    try:
        return Orientation("RAS", labels=None)(LoadImage(ensure_channel_first=True)(path))
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _range(values: np.ndarray, form: str) -> str:
    low, middle, high = (
        " x ".join(f"{value:{form}}" for value in statistic(values, axis=0))
        for statistic in (np.min, np.median, np.max)
    )
    return f"{low} to {high}, median {middle}"

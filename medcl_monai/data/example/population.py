"""The example population: generated brain volumes with exact labels, for users without data.

The volumes are generated from a brain atlas. They show no patients, they are no scans, and they are no benchmark. All
subjects share one average anatomy, so a result on the example population says nothing about clinical data.
"""

import json
import os
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from tqdm import tqdm

from medcl_monai.data.example.licence import LICENCE
from medcl_monai.data.example.subject import GRID, example_subject
from medcl_monai.data.place import cache_folder
from medcl_monai.files import write_atomically

EXAMPLE_VERSION = 1
ABANDONED = 600  # seconds; an unfinished file older than this is deleted, since writing a volume takes one second
STRUCTURES = {
    "1": "white matter",
    "2": "cortical grey",
    "3": "central grey",
    "4": "ventricles",
    "5": "cerebellum and brainstem",
}


def example_population(
    folder: str | Path | None = None, subjects: int = 60, seed: int = 0, spacing: float = 2.0
) -> Path:
    """Generate the missing volumes of the example population, and return the population's Decathlon folder.

    The last sixth of the subjects, rounded up, is the test set, and the sixth before the test set is the validation
    set. The other subjects are the training set. All subjects are labelled. 60 subjects give 40 for training, 10 for
    validation and 10 for test. ``dataset.json`` is written last, so a folder with ``dataset.json`` is complete.

    Args:
        folder: folder of the population; None: a folder in the package's cache folder, which the environment variable
            MEDCL_MONAI_CACHE moves.
        subjects: number of subjects, at least 3.
        seed: seed of the population, 0 or more; another seed gives other subjects.
        spacing: voxel spacing in mm, 2.0 or 4.0.

    Raises:
        ValueError: a number is out of range, or `folder` holds another data set.
        OSError: the folder cannot be written.
    """
    held_out = -(-subjects // 6)
    if subjects < 3 or subjects - 2 * held_out < 1:
        raise ValueError(
            f"example_population: subjects={subjects} leaves no training, validation and test subject: at least 3"
        )
    if spacing not in GRID or seed < 0:
        raise ValueError(f"example_population: spacing={spacing} is not 2.0 or 4.0, or seed={seed} is negative")
    generator = {"version": EXAMPLE_VERSION, "seed": seed, "spacing": spacing, "subjects": subjects}
    name = f"example-v{EXAMPLE_VERSION}-seed{seed}-{spacing:g}mm-{subjects}"
    folder = cache_folder() / name if folder is None else Path(folder)
    if not _complete(folder, generator):
        try:
            _make(folder, generator)
        except OSError as error:
            raise OSError(f"{folder} cannot be written ({error}): set MEDCL_MONAI_CACHE to another place") from error
    return folder


def _complete(folder: Path, generator: dict[str, object]) -> bool:
    """Return whether the folder holds exactly this population, with all volumes.

    Raises:
        ValueError: the folder holds another data set.
    """
    file = folder / "dataset.json"
    if not file.is_file():
        return False
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        content = {}
    if content.get("generator") != generator:
        raise ValueError(
            f"{folder} holds another data set ({content.get('name', 'unknown')}, "
            f"generator {content.get('generator')}): choose an empty folder"
        )
    return all((folder / path).is_file() for path in _names(range(int(generator["subjects"]))))


def _names(numbers: Iterable[int]) -> list[str]:
    return [f"{part}/example_{number:03d}.nii.gz" for number in numbers for part in ("imagesTr", "labelsTr")]


def _make(folder: Path, generator: dict[str, object]) -> None:
    subjects, seed, spacing = int(generator["subjects"]), int(generator["seed"]), float(generator["spacing"])
    missing = [number for number in range(subjects) if not _whole(folder, number, spacing)]
    print(f"making {len(missing)} of {subjects} example volumes in {folder}, once, half a second each", flush=True)
    write = partial(_write, folder, seed, spacing)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        _remove_remains(folder / part)
    if len(missing) > 8:
        with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            list(tqdm(pool.map(write, missing), total=len(missing), desc="example volumes"))
    else:
        for number in missing:
            write(number)
    write_atomically(folder / "LICENSE.txt", lambda path: path.write_text(LICENCE, encoding="utf-8"))
    text = json.dumps(_description(generator), indent=1) + "\n"
    write_atomically(folder / "dataset.json", lambda path: path.write_text(text, encoding="utf-8"))


def _remove_remains(folder: Path) -> None:
    """Delete half-written files of killed processes, but no file that another process may still be writing."""
    for path in folder.glob(".*.example_*.nii.gz"):
        if time.time() - path.stat().st_mtime > ABANDONED:
            path.unlink(missing_ok=True)


def _whole(folder: Path, number: int, spacing: float) -> bool:
    """Return whether both volumes of a subject exist, can be read, and have the right shape."""
    try:
        loaded = [np.asarray(nibabel.load(folder / name).dataobj) for name in _names([number])]
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError):
        return False
    return all(volume.shape == GRID[spacing] for volume in loaded)


def _write(folder: Path, seed: int, spacing: float, number: int) -> None:
    subject = example_subject(number, seed, spacing)
    for name, volume in zip(_names([number]), (subject.image, subject.label), strict=True):
        image = nibabel.Nifti1Image(volume, subject.affine)
        image.header.set_xyzt_units("mm")
        write_atomically(folder / name, lambda path, image=image: nibabel.save(image, path))


def _description(generator: dict[str, object]) -> dict[str, object]:
    subjects = int(generator["subjects"])
    held_out = -(-subjects // 6)
    entries = [
        {"image": f"./imagesTr/example_{number:03d}.nii.gz", "label": f"./labelsTr/example_{number:03d}.nii.gz"}
        for number in range(subjects)
    ]
    return {
        "name": "medcl_monai example population",
        "description": "Brain volumes generated from a brain atlas, with exact labels; not patients, not a benchmark",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", **STRUCTURES},
        "licence": "ICBM 152 notice, see LICENSE.txt",
        "reference": "Fonov et al. 2011, doi 10.1016/j.neuroimage.2010.07.033",
        "release": str(EXAMPLE_VERSION),
        "numTraining": subjects - 2 * held_out,
        "numTest": held_out,
        "training": entries[: subjects - 2 * held_out],
        "validation": entries[subjects - 2 * held_out : subjects - held_out],
        "test": entries[subjects - held_out :],
        "generator": generator,
    }

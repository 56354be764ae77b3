"""Datalists: find the volumes in a folder, and the label and the subject of each volume."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medcl_monai.knobs import knob_types

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
DICOM_MAGIC = slice(128, 132)


@dataclass(frozen=True)
class Datalist:
    """The entries ``{"image": path, "label": path (if labelled), "subject": name}`` of a data set.

    Attributes:
        folder: folder of the data set.
        training: entries with and without labels, including the unlabelled images of the validation and test lists.
        validation: labelled entries of the data set's own validation list.
        test: labelled entries of the data set's own test list.
        structures: label values mapped to the names of the structures, without background; empty if the data set names
            no structures.
    """

    folder: Path
    training: tuple[dict[str, str], ...]
    validation: tuple[dict[str, str], ...] = ()
    test: tuple[dict[str, str], ...] = ()
    structures: Mapping[str, str] = field(default_factory=dict)


def find_volumes(
    dataset_dir: str | Path, subjects: str | Path | None = None, subject_pattern: str | None = None
) -> Datalist:
    """Find the volumes of a data set, with the label and the subject of each volume.

    The folder has one of three layouts: the Medical Segmentation Decathlon's, with ``dataset.json``; ``imagesTr``, with
    or without ``labelsTr``; or any folder tree without labels. A tree may contain NIfTI, NRRD, MHA and MHD files, and
    folders that hold one DICOM series each.

    The subject of a volume is the key ``subject`` of the volume's entry in ``dataset.json``. Where this key is missing,
    `subjects` gives the subject; without `subjects`, `subject_pattern` does; without either, the subject is the file
    name without suffix. If any two volumes have the same file name, the path below `dataset_dir` takes the place of the
    file name.

    Args:
        dataset_dir: folder of the data set: a Decathlon folder, a folder with ``imagesTr``, or any tree of volumes.
        subjects: path of a JSON file that maps the file name of each volume to a subject; None: `subject_pattern` or
            the file name gives the subject.
        subject_pattern: regular expression that is searched in the file name of each volume; its group 1 is the
            subject. None: the file name without suffix is the subject, unless `subjects` is given.

    Raises:
        FileNotFoundError: the folder does not exist or holds no volume, a file that ``dataset.json`` names is missing,
            a label has no image, or the file `subjects` does not exist.
        ValueError: ``dataset.json`` or the file `subjects` cannot be read, a file name has no row in `subjects` or does
            not match `subject_pattern`, an image has several channels as separate files, or a folder holds several
            DICOM series.
    """
    folder = Path(dataset_dir).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset_dir {folder} is no folder")
    if (folder / "dataset.json").is_file():
        parts, structures = _decathlon(folder)
    elif (folder / "imagesTr").is_dir():
        parts, structures = {"training": _pairs(folder)}, {}
    else:
        parts, structures = {"training": [{"image": str(path)} for path in volumes_below(folder)]}, {}
    if not any(parts.values()):
        raise FileNotFoundError(
            f"dataset_dir {folder} holds no volume: dataset.json, imagesTr/, "
            f"or files {', '.join(SUFFIXES)} or DICOM are expected"
        )
    everything = [entry for part in parts.values() for entry in part]
    name_of = _subject_names(folder, everything, subjects, subject_pattern)
    for entry in everything:
        entry.setdefault("subject", "")
        entry["subject"] = str(entry["subject"] or "") or name_of(Path(entry["image"]))
    return Datalist(folder, **{name: tuple(part) for name, part in parts.items()}, structures=structures)


def volumes_below(folder: Path) -> list[Path]:
    """List the volume files and the folders of one DICOM series below a folder, sorted by path.

    Hidden files, hidden folders and folders whose names begin with ``labels`` are left out. Links to folders are
    followed, and each folder is visited once. A DICOM file is recognised by its content, not by its name.
    """
    volumes_found, seen = [], {folder.resolve()}
    for place, inner, names in os.walk(folder, followlinks=True):
        here = Path(place)
        inner[:] = [name for name in sorted(inner) if not name.startswith(".") and not name.lower().startswith("labels")
                    and (here / name).resolve() not in seen]
        seen |= {(here / name).resolve() for name in inner}
        files = [here / name for name in names if not name.startswith(".")]
        volumes = [path for path in files if path.name.lower().endswith(SUFFIXES)]
        volumes_found += volumes
        if any(_is_dicom(path) for path in files if path not in volumes) and one_series(here):
            volumes_found.append(here)
    return sorted(volumes_found)


def one_series(folder: Path) -> str:
    """Return the UID of the only DICOM series in a folder.

    Raises:
        ValueError: the folder holds several DICOM series, or none.
    """
    import itk

    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(False)
    names.SetDirectory(str(folder))
    series = list(names.GetSeriesUIDs())
    if len(series) != 1:
        problem = f"{len(series)} DICOM series, one is expected: {series[:4]}"
        raise ValueError(f"{folder} holds {problem}; give each a folder")
    return series[0]


def stem(path: Path) -> str:
    """Return the name of a volume file without its suffix, such as ``.nii.gz``."""
    ending = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(ending)]


@knob_types
def volumes_to_segment(dataset_dir: str | Path | None = None) -> list[dict[str, str]]:
    """List the volumes to segment, as entries ``{"image": path}``.

    Args:
        dataset_dir: a volume file, or a folder whose volumes are all segmented; None: the test set of the example
            population.

    Raises:
        FileNotFoundError: `dataset_dir` is neither a file nor a folder, or the folder holds no volume.
    """
    if dataset_dir is None:
        from medcl_monai.data.example.population import example_population

        return [{"image": entry["image"]} for entry in find_volumes(example_population()).test]
    if Path(dataset_dir).is_file():
        return [{"image": str(Path(dataset_dir).resolve())}]
    listed = find_volumes(dataset_dir)
    return [{"image": entry["image"]} for entry in (*listed.training, *listed.validation, *listed.test)]


@knob_types
def results_root(dataset_dir: str | Path | None) -> str:
    """Return the folder whose subfolders are repeated in the output folder; "" if `dataset_dir` is None.

    The repeated subfolders keep apart the results of volumes that have the same file name.
    """
    if dataset_dir is None:
        return ""
    place = Path(dataset_dir).resolve()
    return str(place.parent if place.is_file() else place)


def _is_dicom(path: Path) -> bool:
    if path.name.upper() == "DICOMDIR" or not path.is_file():  # a table of contents, not a slice
        return False
    with path.open("rb") as file:
        return file.read(DICOM_MAGIC.stop)[DICOM_MAGIC] == b"DICM"


def _decathlon(folder: Path) -> tuple[dict[str, list[dict]], dict[str, str]]:
    file = folder / "dataset.json"
    content = read_json(file)
    parts: dict[str, list[dict]] = {"training": [], "validation": [], "test": []}
    for name in parts:
        for entry in _entries(content.get(name, []), file, name):
            listed = {key: str(folder.absolute() / entry[key]) for key in ("image", "label") if entry.get(key)}
            # a test or validation image without a label is of use in pre-training only
            part = name if "label" in listed else "training"
            parts[part].append({**listed, **({"subject": entry["subject"]} if "subject" in entry else {})})
    missing = [path for part in parts.values() for entry in part for path in _files(entry) if not Path(path).exists()]
    if missing:
        raise FileNotFoundError(f"{file} names {len(missing)} files that do not exist, first {missing[:3]}")
    labels = content.get("labels", {})
    # the Decathlon maps values to names, nnU-Net maps names to values
    pairs = [(key, name) if str(key).isdigit() else (name, key) for key, name in labels.items()]
    return parts, {str(key): str(name) for key, name in pairs if str(key).isdigit() and int(key) > 0}


def _entries(listed: Sequence, file: Path, name: str) -> Iterator[dict]:
    for entry in listed:
        entry = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise ValueError(f"{file}: {name} holds {entry!r}, a file name or {{'image': …, 'label': …}} is expected")
        yield entry


def _files(entry: Mapping[str, str]) -> list[str]:
    return [entry[key] for key in ("image", "label") if key in entry]


def _pairs(folder: Path) -> list[dict[str, str]]:
    labels = {stem(path): str(path) for path in volumes_below(folder / "labelsTr")}
    images = volumes_below(folder / "imagesTr")
    # nnU-Net appends the channel number to the name of an image: the label of case_0000.nii.gz is case.nii.gz
    name = {path: stem(path) if stem(path) in labels else stem(path).removesuffix("_0000") for path in images}
    if others := [path for path in images if (case := re.fullmatch(r"(.+)_\d{4}", stem(path))) and case[1] in labels
                  and name[path] not in labels]:
        raise ValueError(f"{others[0]} is a further channel of an image: volumes of one channel are expected")
    if lonely := sorted(set(labels) - set(name.values())):
        raise FileNotFoundError(f"{folder}: labels without an image in imagesTr: {lonely[:3]}")
    return [{"image": str(path), **({"label": labels[name[path]]} if name[path] in labels else {})} for path in images]


def _subject_names(
    folder: Path, entries: Sequence[dict], subjects: str | Path | None, pattern: str | None
) -> Callable[[Path], str]:
    if subjects is not None:
        table = read_json(Path(subjects))

        def name_of(path: Path) -> str:
            for name in (path.name, stem(path)):
                if name in table:
                    return str(table[name])
            raise ValueError(f"{subjects} has no row for {path.name}")

        return name_of
    if pattern is not None:

        def name_of(path: Path) -> str:
            if not (match := re.search(pattern, path.name)) or not match.groups():
                raise ValueError(f"subject_pattern {pattern!r} finds no group 1 in {path.name}")
            return match.group(1)

        return name_of
    stems = [stem(Path(entry["image"])) for entry in entries]
    if len(set(stems)) == len(stems):
        return stem
    return lambda path: (path.parent.relative_to(folder) / stem(path)).as_posix()


def read_json(path: Path) -> dict:
    """Read a JSON object from a file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file does not hold a JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, it holds a {type(content).__name__}")
    return content

"""From a folder to a list of entries: which volumes there are, which have labels, and whose they are."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
DICOM_MAGIC = slice(128, 132)


@dataclass(frozen=True)
class Datalist:
    """Entries ``{"image": path, "label": path (if labelled), "subject": name}`` of a data set.

    Attributes:
        folder: of the data set.
        training: entries, with and without labels.
        validation: labelled entries that the data set itself sets apart.
        test: the same.
        structures: label value to name without background; empty if the data set names none.
    """

    folder: Path
    training: tuple[dict[str, str], ...]
    validation: tuple[dict[str, str], ...] = ()
    test: tuple[dict[str, str], ...] = ()
    structures: Mapping[str, str] = field(default_factory=dict)


def find_volumes(
    dataset_dir: str | Path, subjects: str | Path | None = None, subject_pattern: str | None = None
) -> Datalist:
    """The volumes of a Decathlon folder, of ``imagesTr`` with or without ``labelsTr``, or of any tree.

    A tree may hold NIfTI, NRRD, MHA and MHD files, and folders of one DICOM series each. The subject of a volume is
    its entry's key ``subject`` in ``dataset.json``, else its row in `subjects`, else group 1 of `subject_pattern` in
    its name, else its name (where names repeat: its path below the folder).

    Args:
        dataset_dir: the folder.
        subjects: a JSON of file name to subject.
        subject_pattern: regular expression with a group.

    Raises:
        FileNotFoundError: no such folder, no volume in it, or files that ``dataset.json`` names are missing.
        ValueError: ``dataset.json`` or the table cannot be read, a name has no row or does not match, or a folder
            holds several DICOM series.
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
    """Volume files, and folders of one DICOM series, below a folder, in order; folders of labels are left out.

    Linked folders are followed, each folder is looked at once. DICOM is known by its content, whatever its name.
    """
    found, seen = [], {folder.resolve()}
    for place, inner, names in os.walk(folder, followlinks=True):
        here = Path(place)
        inner[:] = [name for name in sorted(inner) if not name.startswith(".") and not name.lower().startswith("labels")
                    and (here / name).resolve() not in seen]
        seen |= {(here / name).resolve() for name in inner}
        files = [here / name for name in names if not name.startswith(".")]
        volumes = [path for path in files if path.name.lower().endswith(SUFFIXES)]
        found += volumes
        if any(_is_dicom(path) for path in files if path not in volumes) and one_series(here):
            found.append(here)
    return sorted(found)


def one_series(folder: Path) -> str:
    """The UID of the only DICOM series in a folder.

    Raises:
        ValueError: several series, or none.
    """
    import itk

    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(False)
    names.SetDirectory(str(folder))
    series = list(names.GetSeriesUIDs())
    if len(series) != 1:
        found = f"{len(series)} DICOM series, one is expected: {series[:4]}"
        raise ValueError(f"{folder} holds {found}; give each a folder")
    return series[0]


def stem(path: Path) -> str:
    """The file's name without the suffixes of a volume."""
    ending = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(ending)]


def volumes_to_segment(dataset_dir: str | Path | None = None) -> list[dict[str, str]]:
    """Entries ``{"image": path}`` for inference: one file, or all volumes of a folder.

    Args:
        dataset_dir: a file or a folder; None: the example population's test set.

    Raises:
        FileNotFoundError: neither a file nor a folder, or a folder without volumes.
    """
    if dataset_dir is None:
        from medcl_monai.data.example.population import example_population

        return [{"image": entry["image"]} for entry in find_volumes(example_population()).test]
    if Path(dataset_dir).is_file():
        return [{"image": str(Path(dataset_dir).resolve())}]
    listed = find_volumes(dataset_dir)
    return [{"image": entry["image"]} for entry in (*listed.training, *listed.validation, *listed.test)]


def results_root(dataset_dir: str | Path | None) -> str:
    """The folder whose inner folders results keep, so that none replaces another's of the same name; "" for none."""
    if dataset_dir is None:
        return ""
    place = Path(dataset_dir).resolve()
    return str(place.parent if place.is_file() else place)


def _is_dicom(path: Path) -> bool:
    if path.name.upper() == "DICOMDIR" or not path.is_file():  # a table of contents, no slice
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
            # an unlabelled test or validation image can only serve pre-training
            part = name if "label" in listed else "training"
            parts[part].append({**listed, **({"subject": entry["subject"]} if "subject" in entry else {})})
    missing = [path for part in parts.values() for entry in part for path in _files(entry) if not Path(path).exists()]
    if missing:
        raise FileNotFoundError(f"{file} names {len(missing)} files that do not exist, first {missing[:3]}")
    labels = content.get("labels", {})
    # the Decathlon maps value to name, nnU-Net name to value
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
    # nnU-Net numbers the channels of an image: case_0000.nii.gz has the label case.nii.gz
    name = {path: stem(path) if stem(path) in labels else stem(path).removesuffix("_0000") for path in images}
    if others := [path for path in images if (own := re.fullmatch(r"(.+)_\d{4}", stem(path))) and own[1] in labels
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
    """A JSON object in a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object.
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

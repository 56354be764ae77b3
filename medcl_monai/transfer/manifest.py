"""The record beside weights files: the hash of each file, and digests of the subjects that the weights have seen."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medcl_monai.data.datalist import stem
from medcl_monai.files import file_hash, write_atomically

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def record_weights(
    path: Path, data: Sequence[dict], seen_before: Iterable[str] = (), prepared: Mapping[str, object] | None = None
) -> None:
    """Record the hash of a weights file and digests of the subjects seen, in ``manifest.json`` beside the file.

    Args:
        path: the weights file.
        data: entries of the data list that training used.
        seen_before: digests of the subjects that the weights at the start of training had seen.
        prepared: settings of the preprocessing of the volumes, which are recorded as they are; None: no settings are
            recorded.
    """
    manifest = path.parent / MANIFEST
    records = read_manifest(manifest)
    seen = digests(data) | set(seen_before)
    records[path.name] = {"sha256": file_hash(path), "subjects_seen": sorted(seen)}
    if prepared is not None:
        records[path.name]["prepared"] = dict(prepared)
    text = json.dumps(records, indent=1, sort_keys=True) + "\n"
    write_atomically(manifest, lambda aside: aside.write_text(text, encoding="utf-8"))


def seen_subjects(path: str | Path) -> list[str] | None:
    """Return digests of the subjects that the weights have seen, or None if no record fits the hash of the file."""
    path = Path(path)
    record = read_manifest(path.parent / MANIFEST).get(path.name)
    if not path.is_file() or record is None or record.get("sha256") != file_hash(path):
        return None
    return record.get("subjects_seen")


def check_unseen(path: str | Path, data: Sequence[dict]) -> None:
    """Raise an error if the weights have seen a subject that is to be scored; log a warning if there is no record.

    Raises:
        ValueError: the weights have seen subjects of `data`; the error names the subjects.
    """
    seen = seen_subjects(path)
    if seen is None:
        logger.warning("%s: no record of its hash in %s: who was seen in training is not known", path, MANIFEST)
        return
    subjects = sorted({subject_of(entry) for entry in data})
    if known := [subject for subject in subjects if digest(subject) in set(seen)]:
        raise ValueError(f"{path} was trained on {len(known)} of the subjects to be scored: {known[:5]}")


def read_manifest(path: Path) -> dict[str, dict]:
    """Return the records in a ``manifest.json``, by the name of the weights file; without the file, an empty dict.

    Raises:
        ValueError: the file holds no records.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} holds no records of weights: {error}") from error
    if not isinstance(records, dict):
        raise ValueError(f"{path} holds no records of weights: an object of file name to record is expected")
    return records


def subject_of(entry: Mapping[str, str]) -> str:
    """Return the name of an entry's subject, or the name of the image file without suffix if there is none.

    Entries from MONAI Label, for example, have no subject.
    """
    return str(entry.get("subject") or stem(Path(entry["image"])))


def digests(data: Iterable[Mapping[str, str]]) -> set[str]:
    """Return the digests of the subjects of all entries."""
    return {digest(subject_of(entry)) for entry in data}


def digest(subject: str) -> str:
    """Return the sha256 of a subject's name, so that a manifest does not contain the name."""
    return hashlib.sha256(str(subject).encode()).hexdigest()

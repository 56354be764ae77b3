"""Reproducible splits of a data set by subject, for pre-training, training, validation and test."""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medcl_monai.data.datalist import Datalist, find_volumes
from medcl_monai.data.example.population import example_population
from medcl_monai.distributed import rank
from medcl_monai.files import volume_files, volume_hash, write_atomically
from medcl_monai.knobs import knob_types

TEST_SHARE, VALIDATION_SHARE, LEAST_VALIDATION = 0.3, 0.1, 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Lists of entries; no subject is in two of the lists `training`, `validation` and `test`.

    Attributes:
        pretraining: images of all subjects outside `validation` and `test`, without labels.
        training: labelled entries of the labelled subjects outside `validation` and `test`, limited to the first
            `label_fraction` of these subjects.
        validation: labelled entries of the validation subjects.
        test: labelled entries of the test subjects.
        structures: label values mapped to the names of the structures; empty if the data set names no structures.
    """

    pretraining: list[dict[str, str]]
    training: list[dict[str, str]]
    validation: list[dict[str, str]]
    test: list[dict[str, str]]
    structures: dict[str, str]

    def write(
        self,
        path: str | Path,
        pretraining: Sequence[dict[str, str]] | None = None,
        training: Sequence[dict[str, str]] | None = None,
        validation: Sequence[dict[str, str]] | None = None,
        test: Sequence[dict[str, str]] | None = None,
    ) -> None:
        """Write the lists to a JSON file; only the first process writes.

        Args:
            path: the JSON file.
            pretraining: what the run uses in place of this split's own list, and so for the other lists; None: the list
                of this split.
            training: see `pretraining`.
            validation: see `pretraining`.
            test: see `pretraining`.
        """
        if rank() != 0:
            return
        used = {"pretraining": pretraining, "training": training, "validation": validation, "test": test}
        lists = asdict(self) | {name: list(entries) for name, entries in used.items() if entries is not None}
        text = json.dumps(lists, indent=1, ensure_ascii=False) + "\n"
        write_atomically(Path(path), lambda aside: aside.write_text(text, encoding="utf-8"))


@knob_types
def split_dataset(
    dataset_dir: str | Path | None = None,
    split_seed: int = 0,
    label_fraction: float = 1.0,
    subjects: str | Path | None = None,
    subject_pattern: str | None = None,
) -> Split:
    """Split a data set by subject; the same seed and subjects give the same split on every machine.

    A labelled validation or test list in ``dataset.json`` is used as it is. Where a list is missing, its subjects are
    taken from the other labelled subjects, ordered by the sha256 of seed and name: 30 % of these subjects (at least 1)
    for test, 10 % (at least 2) for validation. The remaining labelled subjects are the pool, and the first of the pool
    keep their labels. So the training subjects of a small `label_fraction` are also training subjects of a larger one.
    Subjects without any label are used in pre-training only.

    Args:
        dataset_dir: folder of the data set: a Decathlon folder, a folder with ``imagesTr``, or any tree of volumes;
            None: the example population.
        split_seed: seed of the order in which subjects are assigned to test, validation and pool.
        label_fraction: share of the labelled subjects outside test and validation that keep their labels, above 0, at
            most 1; at least one subject keeps its labels.
        subjects: path of a JSON file that maps the file name of each volume to a subject; None: `subject_pattern` or
            the file name gives the subject.
        subject_pattern: regular expression that is searched in the file name of each volume; its group 1 is the
            subject. None: the file name without suffix is the subject, unless `subjects` is given.

    Raises:
        FileNotFoundError: the folder does not exist or holds no volume, or a file of the data set is missing.
        ValueError: `label_fraction` is out of range; there are too few labelled subjects (fewer than 4 if
            ``dataset.json`` gives no list); a subject is in two lists of ``dataset.json``; an image outside test and
            validation is, byte for byte, a test or validation image; or `subjects` or `subject_pattern` does not fit
            the file names.
    """
    if not 0 < label_fraction <= 1:
        raise ValueError(f"label_fraction must be above 0, to 1, got {label_fraction}")
    listed = find_volumes(example_population() if dataset_dir is None else dataset_dir, subjects, subject_pattern)
    held_out = _held_out(listed, split_seed)
    entries = [*listed.training, *listed.validation, *listed.test]
    parts = {name: [entry for entry in entries if entry["subject"] in people] for name, people in held_out.items()}
    pool = [entry for entry in entries if not any(entry["subject"] in people for people in held_out.values())]
    refuse_copies(pool, [*parts["test"], *parts["validation"]])
    labelled = ordered({entry["subject"] for entry in pool if "label" in entry}, split_seed)
    kept = set(labelled[: max(1, nearest(label_fraction * len(labelled)))])
    split = Split(
        pretraining=[{"image": entry["image"], "subject": entry["subject"]} for entry in pool],
        training=[entry for entry in pool if "label" in entry and entry["subject"] in kept],
        validation=[entry for entry in parts["validation"] if "label" in entry],
        test=[entry for entry in parts["test"] if "label" in entry],
        structures=dict(listed.structures),
    )
    logger.info(
        "%s: %d volumes to pre-train on, %d to train on with labels, %d of validation, %d of the test set",
        listed.folder, *(len(part) for part in (split.pretraining, split.training, split.validation, split.test)),
    )
    return split


def _held_out(listed: Datalist, seed: int) -> dict[str, set[str]]:
    """Return the validation and test subjects; a list that the data set lacks is drawn from the labelled subjects."""
    held_out = {name: {entry["subject"] for entry in getattr(listed, name)} for name in ("test", "validation")}
    labelled = {entry["subject"] for entry in listed.training if "label" in entry}
    if twice := (held_out["validation"] & held_out["test"]) | (labelled & (held_out["validation"] | held_out["test"])):
        raise ValueError(f"{listed.folder / 'dataset.json'} has subjects in two lists: {sorted(twice)[:5]}")
    if not labelled:  # without labels to train on, the volumes are for pre-training or for evaluation
        return held_out
    rest = ordered(labelled, seed)
    wanted = {
        "test": max(1, nearest(TEST_SHARE * len(rest))),
        "validation": max(LEAST_VALIDATION, nearest(VALIDATION_SHARE * len(rest))),
    }
    drawn = {name: 0 if held_out[name] else number for name, number in wanted.items()}
    if len(rest) <= sum(drawn.values()):
        raise ValueError(
            f"{listed.folder}: {len(rest)} labelled subjects leave none to train on beside {drawn['test']} for test "
            f"and {drawn['validation']} for validation; at least {sum(drawn.values()) + 1} are needed"
        )
    for name, number in drawn.items():
        held_out[name], rest = held_out[name] | set(rest[:number]), rest[number:]
    return held_out


def ordered(subjects: Iterable[str], seed: int) -> list[str]:
    """Sort subjects by the sha256 of seed and name."""
    return sorted(subjects, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())


def nearest(number: float) -> int:
    """Round a number to the nearest integer; halves are rounded up."""
    return int(number + 0.5)


def refuse_copies(pool: Sequence[dict[str, str]], held_out: Sequence[dict[str, str]]) -> None:
    """Raise ValueError if an image of the pool is, byte for byte, a held-out image.

    Only images whose files have the same size in bytes are read.
    """
    sizes: dict[int, list[Path]] = {}
    for entry in held_out:
        if (path := Path(entry["image"])).exists():
            sizes.setdefault(_bytes(path), []).append(path)
    hashes: dict[Path, str] = {}
    for entry in pool:
        path = Path(entry["image"])
        for other in sizes.get(_bytes(path), []) if path.exists() else []:
            for volume in (path, other):
                if volume not in hashes:
                    hashes[volume] = volume_hash(volume)
            if hashes[path] == hashes[other]:
                raise ValueError(f"{path} is the held-out image {other} (sha256 {hashes[path][:8]}…)")


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in volume_files(path))

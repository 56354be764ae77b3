"""Files that are whole or not there, and their hashes."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

HEADER = 65536  # bytes: more than the text at the head of an MHD or NRRD file


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it there: readers see the old file or the whole new one.

    The file that is written has the same suffixes, and the process's number in its name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def volume_files(path: Path) -> list[Path]:
    """The files that a volume is made of: one, those of a DICOM folder, or a header and the data that it names."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    if path.suffix.lower() not in (".mhd", ".nrrd"):
        return [path]
    with path.open("rb") as file:
        header = file.read(HEADER).decode("latin-1").partition("\n\n")[0]
    named = re.search(r"^(?:ElementDataFile\s*=|data ?file:)\s*(.+)$", header, re.IGNORECASE | re.MULTILINE)
    if named is None or named[1].strip().upper() == "LOCAL":
        return [path]
    names = header[named.end() :].splitlines() if named[1].strip().upper().startswith("LIST") else [named[1]]
    data = [path.parent / name.strip() for name in names if name.strip()]
    return [path, *(file for file in data if file.is_file())]


def volume_hash(path: Path) -> str:
    """sha256 of a volume, of all its files where it has several.

    Raises:
        ValueError: no such file.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    hashes = [file_hash(file) for file in volume_files(path)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

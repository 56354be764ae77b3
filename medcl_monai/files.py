"""Functions that write a file whole or not at all, find the files of a volume, and hash files."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

HEADER = 65536  # bytes that are read from an MHD or NRRD file; the text header is shorter


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move the temporary file to `path`.

    A reader sees the old file or the whole new file. The temporary file has the suffixes of `path`, and its name
    contains the process id.
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
    """Return the files of a volume: one file, all files of a DICOM folder, or a header with its data files."""
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
    """Return the sha256 of a volume; if the volume has several files, the sha256 covers all files.

    Raises:
        ValueError: there is no such file or folder.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    hashes = [file_hash(file) for file in volume_files(path)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the sha256 of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Whether files still hold what was written: a folder's `SHA256SUMS`, in the form that `sha256sum -c` reads.

Stages write one for all their outputs, model folders carry their own; what reads them checks first. There is no time,
size or path of a machine in one: the same files have the same sums.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from prm_core.errors import InputError
from prm_core.platform import store

FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_sums(folder: Path) -> None:
    """Records the digest of every file below a folder; hidden ones (`.name`) do not count."""
    lines = (f"{store.file_digest(folder / name)}  {name}\n" for name in sorted(_names(folder)))
    store.write_text(folder / FILE, "".join(lines))


def check_sums(folder: Path, way_out: str, below: str = "") -> None:
    """Compares a folder's files with its sums; a folder without any passes.

    Args:
        way_out: what to do about a file that differs, the end of the message.
        below: only this file or subfolder.

    Raises InputError naming the first file that was changed, is missing, or was not there.
    """
    file = folder / FILE
    if not file.is_file():
        return
    recorded = {name: digest for name, digest in _read(file).items() if _is_below(name, below)}
    present = {name for name in _names(folder) if _is_below(name, below)}
    for name in sorted({*recorded, *present}):
        path = folder / name
        if name not in present:
            raise InputError(f"{path}: is missing, and {FILE} beside it names it; {way_out}")
        if name not in recorded:
            raise InputError(f"{path}: was added after the files were written, {file} does not name it; {way_out}")
        if store.file_digest(path) != recorded[name]:
            raise InputError(f"{path}: its bytes are not those that were written, {file} records others; {way_out}")


def _is_below(name: str, part: str) -> bool:
    return not part or name == part or name.startswith(f"{part}/")


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if str(name) != FILE and not any(part.startswith(".") for part in name.parts) and path.is_file():
            yield name.as_posix()


def _read(file: Path) -> dict[str, str]:
    """File names and digests. Raises InputError at the first line that is none, or leads out of the folder."""
    found = {}
    for number, line in enumerate(file.read_bytes().decode(errors="replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or PurePosixPath(match[2]).is_absolute() or ".." in PurePosixPath(match[2]).parts:
            raise InputError(f"{file}:{number}: not a digest, two spaces and the name of a file in this folder; the "
                             "file was damaged: copy the folder anew, or make what it holds again")
        found[match[2]] = match[1]
    return found

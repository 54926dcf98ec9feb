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


def differences(folder: Path, below: str = "") -> Iterator[tuple[Path, str]]:
    """Each file that is not as its folder's sums record it, in order, and what is wrong with it; none without sums.

    Args:
        below: only this file or subfolder.
    """
    file = folder / FILE
    if not file.is_file():
        return
    recorded = _read(file)
    if isinstance(recorded, int):
        yield file, f"line {recorded} is no digest, two spaces and the name of a file in this folder"
        return
    names = {name for name in (*recorded, *_names(folder)) if _is_below(name, below)}
    for name in sorted(names):
        path = folder / name
        if not path.is_file():
            yield path, f"is missing, and {FILE} beside it names it"
        elif name not in recorded:
            yield path, f"was added after the files were written, {file} does not name it"
        elif store.file_digest(path) != recorded[name]:
            yield path, f"its bytes are not those that were written, {file} records others"


def check_sums(folder: Path, way_out: str, below: str = "") -> None:
    """Raises InputError naming the first file of `differences`.

    Args:
        way_out: what to do about it, the end of the message.
    """
    for path, fault in differences(folder, below):
        raise InputError(f"{path}: {fault}; {way_out}")


def _is_below(name: str, part: str) -> bool:
    return not part or name == part or name.startswith(f"{part}/")


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if str(name) != FILE and not any(part.startswith(".") for part in name.parts) and path.is_file():
            yield name.as_posix()


def _read(file: Path) -> dict[str, str] | int:
    """File names and digests, or the number of the first line that is none or leads out of the folder."""
    found = {}
    for number, line in enumerate(file.read_bytes().decode(errors="replace").rstrip("\n").split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None or PurePosixPath(match[2]).is_absolute() or ".." in PurePosixPath(match[2]).parts:
            return number
        found[match[2]] = match[1]
    return found

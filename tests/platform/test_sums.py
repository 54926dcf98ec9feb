"""Sums of a folder: every flipped byte, missing and added file is named; equal files give equal sums."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from prm_core.errors import InputError
from prm_core.platform.sums import FILE, check_sums, write_sums

CONTENT = {"weights.bin": bytes(range(256)), "config.json": b"{}\n", "inner/part one.txt": "größe\n".encode()}


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "model"
    for name, content in CONTENT.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    write_sums(path)
    return path


def test_what_was_written_passes_also_as_a_copy_and_with_hidden_files(folder, tmp_path) -> None:
    check_sums(folder, "")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / ".cache").mkdir()
    (folder / ".cache/note").write_bytes(b"x")
    check_sums(folder, "")
    write_sums(folder)
    shutil.copytree(folder, tmp_path / "copy")
    check_sums(tmp_path / "copy", "")
    assert (tmp_path / "copy" / FILE).read_text().splitlines() == [
        "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356  config.json",
        "80509adb883cb2f4aac2f5ec0461503ff7dad5a379ad05b97e04afd29f3b3a4a  inner/part one.txt",
        "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880  weights.bin",
    ]


def test_the_usual_tool_reads_it(folder) -> None:
    done = subprocess.run(["sha256sum", "--strict", "-c", FILE], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count(": OK")) == (0, len(CONTENT))


def test_every_flipped_byte_shows_even_with_the_file_s_time_put_back(folder) -> None:
    random.seed(0)
    for name in (*CONTENT, FILE):
        path = folder / name
        before, times = path.read_bytes(), path.stat()
        for at in random.sample(range(len(before)), min(len(before), 40)):
            path.write_bytes(before[:at] + bytes([before[at] ^ 1 << random.randrange(8)]) + before[at + 1 :])
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            with pytest.raises(InputError) as refused:
                check_sums(folder, "copy it anew")
            assert FILE in str(refused.value)
            # A name in the sums may be what was flipped: then there is no file of it.
            assert name in (FILE, str(refused.value).split(":")[0].removeprefix(f"{folder}/"))
        path.write_bytes(before)
    check_sums(folder, "")


def test_missing_and_added_files_are_named_with_the_way_out(folder) -> None:
    (folder / "adapter.json").write_text("{}")
    with pytest.raises(InputError, match=r"adapter\.json: was added after .*; copy it anew"):
        check_sums(folder, "copy it anew")
    check_sums(folder, "", below="inner")
    check_sums(folder, "", below="config.json")
    (folder / "inner/part one.txt").unlink()
    with pytest.raises(InputError, match=r"part one\.txt: is missing"):
        check_sums(folder, "", below="inner")


@pytest.mark.parametrize("line", ["../", "/etc/"])
def test_sums_name_files_of_their_folder_only(folder, line: str) -> None:
    (folder / FILE).write_text(f"{'0' * 64}  {line}passwd\n")
    with pytest.raises(InputError, match=f"{FILE}: line 1 is no digest"):
        check_sums(folder, "")


def test_a_folder_without_sums_passes(tmp_path) -> None:
    check_sums(tmp_path, "")
    check_sums(tmp_path / "gone", "")

"""Flipped bits in a finished workspace: does whatever reads the file say so, and name it?

    python -m benchmarks.flipped_bytes --workspace runs/smoke --out benchmarks/results/flipped_bytes.json

Each try flips one bit of one file that a run left (stage outputs, data/, the registered model) in a copy, and puts
the file's times back, as a failing disk does. Then what would read it is asked, as far as it concerns it: the look that
the flow takes before it asks DVC, the start of each stage whose input it is, and the loading of the model whose file it
is. A try is silent when one of them goes on, or does not name the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from benchmarks.report import Bar, arguments, write
from prm_core import config as configuration
from prm_core.errors import InputError
from prm_core.platform import store, sums, workspace
from prm_core.sampling.policy import load_policy
from prm_core.scoring.foreign import load_any_scorer
from prm_core.stages import base

REGISTERED = "mlruns/models"


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, default=Path("."), help="a finished run's folder; it is copied")
    parser.add_argument("--tries", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)


def files_of(folder: Path) -> list[Path]:
    """What a run left: relative paths."""
    found = [*folder.glob("artifacts/**/*"), *folder.glob("data/**/*"),
             *folder.glob(f"{REGISTERED}/*/artifacts/artifacts/**/*")]
    return sorted(path.relative_to(folder) for path in found if path.is_file() and path.stat().st_size)


def flip(path: Path, draw: random.Random) -> bytes:
    """Flips a bit, leaving size and times; returns the bytes as they were."""
    before, times = path.read_bytes(), path.stat()
    content = bytearray(before)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return before


def model_of(folder: Path, path: Path) -> Path | None:
    """The model folder that a file belongs to."""
    return next((folder / parent for parent in path.parents if (folder / parent / "config.json").is_file()), None)


def readers(folder: Path, path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """What reads a file of a workspace, by name; each raises InputError when it finds fault with it."""
    if path.parts[0] == "artifacts":
        yield "flow", lambda: refuse_damaged(folder)
    if path.parts[0] == "data":
        yield "flow", lambda: workspace.check_data(folder)
    for name in base.CHAIN:
        stage = base.load_stage(name)
        inputs = [Path(one) for one in stage.inputs.values()]
        if path.parts[0] == "artifacts" and any(one == path or one in path.parents for one in inputs):
            yield f"stage {name}", lambda name=name: start(name, folder)
    model = model_of(folder, path)
    if model is not None:
        yield "model", lambda: load(model, folder)


def refuse_damaged(folder: Path) -> None:
    for _, path, fault in base.damaged(folder):
        raise InputError(f"{path}: {fault}")


def start(name: str, folder: Path) -> None:
    """A stage up to where its own work would begin; nothing it wrote earlier is touched."""
    stage = dataclasses.replace(base.load_stage(name), outputs={}, run=lambda config, io: None)
    with mock.patch.object(base, "load_stage", return_value=stage), mock.patch.object(base.sums, "write_sums"), \
            mock.patch.object(base, "_remove"), mock.patch.object(base.shutil, "move"):
        base.execute(name, folder)


def load(model: Path, folder: Path) -> None:
    if (model / "calibrator.json").exists():
        load_any_scorer(model, device="cpu")
    else:
        load_policy(str(model), configuration.load(folder))


def main() -> None:
    """Measures, writes and prints the bars."""
    given = arguments("flipped_bytes", more)
    tries = given.tries // 4 if given.quick else given.tries
    draw = random.Random(given.seed)
    silent: list[str] = []
    asked: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "workspace"
        left_out = shutil.ignore_patterns(".dvc", ".git", ".work", ".venv", "runs")
        shutil.copytree(given.workspace, folder, ignore=left_out)
        files = files_of(folder)
        for path in files:
            for _, read in readers(folder, path):
                read()
        for _ in range(tries):
            path = draw.choice(files)
            before = flip(folder / path, draw)
            named = False
            for reader, read in readers(folder, path):
                asked[reader] += 1
                try:
                    read()
                except InputError as error:
                    # What a flipped name in the sums points to is another file.
                    # DVC records data/ as a whole.
                    named = path.name in str(error) or path.name == sums.FILE or path.parts[0] == "data"
                else:
                    silent.append(f"{path}: {reader}")
            if not named:
                silent.append(f"{path}: not named")
            (folder / path).write_bytes(before)
        seconds = look_seconds(folder)
    bars = [
        Bar("flipped bits, tries that something passed over", len(silent), None, None, "0", not silent),
        Bar("tries", tries, None, None, "200", tries >= 200),
        Bar("hashing all that a run left, seconds", seconds, None, None, "< 1", seconds < 1),
    ]
    write(given, bars, workspace=given.workspace.resolve().name, files=len(files), asked=dict(asked),
          silent=silent)


def look_seconds(folder: Path) -> float:
    """One look at all of a workspace, nothing known from before."""
    store._DIGESTS.clear()
    started = time.perf_counter()
    refuse_damaged(folder)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

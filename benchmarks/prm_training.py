"""The bars of the reward models: training against TRL's PRMTrainer, scoring, the embedded domain, ProcessBench.

    python -m benchmarks.prm_training throughput --base FOLDER --data FILE --peer-python PYTHON --out FILE
    python -m benchmarks.prm_training scoring --base FOLDER --data FILE --workspace FOLDER --out FILE
    python -m benchmarks.prm_training embedded --workspace FOLDER --out FILE
    python -m benchmarks.prm_training train-peer --base FOLDER --data FILE --peer-python PYTHON --seconds 3600
                                                 --folder FOLDER --out FILE
    python -m benchmarks.prm_training processbench --our-result FILE --peer-result FILE --peer-training FILE --out FILE

--base is a Hugging Face folder of SmolLM2-135M, --data PRM800K phase 1 (.parquet), --workspace a finished run of the
default profile, --peer-python a Python that has trl 1.13.0, the last release with the trainer (`prm_peer.py`).
With --quick each part but train-peer ends within five minutes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import prm_embedded, prm_processbench, prm_scoring, prm_throughput
from benchmarks.prm_measure import versions
from benchmarks.report import Bar, arguments, write
from prm_core.errors import InputError
from prm_core.models.loading import model_version, pick_device

Part = Callable[[argparse.Namespace], tuple[list[Bar], dict[str, Any]]]
# Name → what it does, and the options it cannot do without.
PARTS: dict[str, tuple[Part, tuple[str, ...]]] = {
    "throughput": (prm_throughput.measure, ("base", "data", "peer_python")),
    "scoring": (prm_scoring.measure, ()),
    "embedded": (prm_embedded.measure, ("workspace",)),
    "train-peer": (prm_processbench.train_peer, ("base", "data", "peer_python", "folder")),
    "processbench": (prm_processbench.measure, ("our_result", "peer_result")),
}


def main() -> None:
    """Measures one part, writes and prints its bars."""
    given = arguments("prm_training", _more)
    part, needed = PARTS[given.part]
    more: dict[str, Any] = {}
    try:
        check(given, needed)
        given.device = pick_device(given.device).type
        if given.base is not None:
            more["base"] = model_version(str(given.base))
        bars, found = part(given)
    except (InputError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None
    write(given, bars, **more, part=given.part, versions=versions(), **found)
    show(found.get("beside", []))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A table of the figures that nothing is asked of."""
    from rich.console import Console
    from rich.table import Table

    table = Table("beside", "measured", "95 % or range")
    for row in rows:
        table.add_row(row["name"], f"{row['value']:.4g}",
                      "" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}")
    if rows:
        Console().print(table)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--base", type=Path, help="Hugging Face folder of the base model")
    parser.add_argument("--data", type=Path, help="PRM800K phase 1 (.parquet)")
    parser.add_argument("--peer-python", type=Path, help="Python of an environment with trl 1.13.0")
    parser.add_argument("--workspace", type=Path, help="folder in which the default profile has run")
    parser.add_argument("--seed", type=int, default=0, help="of the chains drawn and of training")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch, in every process")
    parser.add_argument("--chains", type=int, help="chains to train on: throughput 72 (--quick 24), train-peer all")
    parser.add_argument("--max-length", type=int, help="tokens of the longest chain, 1024 (throughput --quick 512)")
    parser.add_argument("--labels", choices=("all", "once"), default="all",
                        help="all: every chain has the labels of all its steps; once: a step that chains share is "
                             "labelled in one of them")
    parser.add_argument("--surprisal", action="store_true", help="throughput: our model with its surprisal's term")
    parser.add_argument("--ours", type=yaml.safe_load, action=_Settings, nargs="*", default={}, metavar="KEY: VALUE",
                        help="throughput: our train_prm settings, for instance 'gradient_checkpointing: true'")
    parser.add_argument("--learning-rate", type=float, help="of the peer; default: its own, 1e-5")
    parser.add_argument("--peer-settings", choices=("default", "tuned"), default="default", help="train-peer")
    parser.add_argument("--seconds", type=float, default=3600, help="train-peer: wall-clock budget (--quick 60)")
    parser.add_argument("--folder", type=Path, help="train-peer: new folder for its model")
    for side in ("our", "peer"):
        parser.add_argument(f"--{side}-result", type=Path, help="processbench: JSON of `prm evaluate --out`")
        parser.add_argument(f"--{side}-model", type=Path, help="processbench: makes that JSON where it is not there")
    parser.add_argument("--processbench", type=Path, help="processbench: gsm8k.json, to make a JSON with")
    parser.add_argument("--our-training", help="processbench: the command our model was trained with, to be recorded")
    parser.add_argument("--peer-training", type=Path, help="processbench: the JSON of train-peer, to be recorded")


class _Settings(argparse.Action):
    """`KEY: VALUE` arguments as one mapping."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        if not all(isinstance(value, dict) for value in values):
            parser.error(f"{option_string} takes settings such as 'row_tokens: 768'")
        setattr(namespace, self.dest, {key: value for one in values for key, value in one.items()})


def check(given: argparse.Namespace, needed: tuple[str, ...]) -> None:
    """Raises InputError for an option that the part needs and that is not there, or names nothing."""
    missing = ["--" + name.replace("_", "-") for name in needed if getattr(given, name) is None]
    if missing:
        raise InputError(f"{given.part} needs {', '.join(missing)}; see --help")
    for name in ("base", "data", "workspace", "processbench", "peer_training"):
        path = getattr(given, name)
        if path is not None and not path.exists():
            raise InputError(f"--{name.replace('_', '-')} {path}: not there; name a file or folder that is")


if __name__ == "__main__":
    main()

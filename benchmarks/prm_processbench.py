"""ProcessBench: our model and TRL's on the same base and data, from the results of `prm evaluate --out`."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import prm_chains, prm_measure, prm_peer
from benchmarks.report import Bar
from prm_core.errors import InputError
from prm_core.models.loading import model_version
from prm_core.platform import store

BENCHMARK = "processbench"
F1 = "prm/first_error_f1"
LEAST = 42.0
TRL_EXAMPLE = 36.6
# What a model that knows nothing reaches, by how it is let to guess; `coin` has its threshold in hindsight, as the
# protocol lets every model have it on this subset.
FLOORS = {"random": "a uniform guess", "coin": "the best coin in hindsight",
          "middle": "the middle step, where the answer is wrong"}
SIDES = {"ours": "--our", "peer": "--peer"}


def measure(given: argparse.Namespace) -> tuple[list[Bar], dict[str, Any]]:
    """The bars on both results; a result that is not there yet is made when its model and the file are given."""
    results = {side: _result(given, side) for side in SIDES}
    figures = {side: _figures(result, SIDES[side]) for side, result in results.items()}
    if (ours := list(results["ours"]["files"])) != (peer := list(results["peer"]["files"])):
        raise InputError(f"the two results are of different files ({ours} and {peer}); evaluate both models on one")
    value, low, high = figures["ours"]
    gain = value - figures["peer"][0]
    bars = [
        Bar("ProcessBench GSM8K F1, ours", value, low, high, f">= {LEAST:g}", value >= LEAST),
        Bar("ProcessBench GSM8K F1, ours - TRL's, points", gain, None, None, ">= 0", gain >= 0),
    ]
    flat = next(iter(results["ours"]["files"].values()))
    others = [
        prm_measure.beside("ProcessBench GSM8K F1, TRL's on the same base and data", *figures["peer"]),
        prm_measure.beside("ProcessBench GSM8K F1, TRL's own 1.5B example, as published", TRL_EXAMPLE),
        *(prm_measure.beside(f"floor: {what}", 100 * flat[f"{name}/first_error_f1"])
          for name, what in FLOORS.items() if f"{name}/first_error_f1" in flat),
    ]
    training = {"ours": given.our_training,
                "peer": store.read_json(given.peer_training) if given.peer_training else None}
    evaluation = {side: {"command": command(result), "result": result} for side, result in results.items()}
    return bars, {"beside": others, "training": training, "evaluation": evaluation}


def _result(given: argparse.Namespace, side: str) -> dict[str, Any]:
    """What `prm evaluate` wrote for a side."""
    option = SIDES[side]
    name = option.removeprefix("--")
    path, model = getattr(given, f"{name}_result"), getattr(given, f"{name}_model")
    if path is None:
        raise InputError(f"{option}-result is needed: the JSON of `prm evaluate --benchmark {BENCHMARK} --out FILE` "
                         f"or where to write it ({option}-model, --processbench)")
    if not path.exists():
        if model is None or given.processbench is None:
            raise InputError(f"{option}-result {path}: no such file; name {option}-model and --processbench to make it")
        subprocess.run([sys.executable, "-m", "prm_core.cli", "evaluate", str(given.processbench), "--model",
                        str(model), "--benchmark", BENCHMARK, "--threshold-from", str(given.processbench),
                        "--device", given.device, "--out", str(path)], check=True)
    result = store.read_json(path)
    if not isinstance(result, dict) or result.get("benchmark") != BENCHMARK:
        raise InputError(f"{option}-result {path}: not a result of `prm evaluate --benchmark {BENCHMARK}`")
    return result


def _figures(result: dict[str, Any], option: str) -> tuple[float, float, float]:
    """F1 and its interval, times 100."""
    if len(result["files"]) != 1:
        raise InputError(f"{option}-result: {len(result['files'])} files, not one; evaluate on the GSM8K subset alone")
    flat = next(iter(result["files"].values()))
    value, low, high = (100 * flat[f"{F1}{end}"] for end in ("", "_low", "_high"))
    return value, low, high


def command(result: dict[str, Any]) -> str:
    """The command that makes a result of `prm evaluate` again."""
    threshold = ([] if result["threshold_rule"] == "default" else
                 ["--threshold-from", result["threshold_from"]] if result["threshold_from"] else
                 ["--threshold", str(result["threshold"])])
    return shlex.join(["prm", "evaluate", *result["files"], "--model", result["model"], "--benchmark",
                       result["benchmark"], *threshold, "--seed", str(result["seed"]), "--resamples",
                       str(result["resamples"]), "--out", "FILE"])


def train_peer(given: argparse.Namespace) -> tuple[list[Bar], dict[str, Any]]:
    """Trains TRL's PRMTrainer for a wall-clock budget and saves it as a folder that `prm evaluate --model` takes."""
    from prm_core.scoring.foreign import load_foreign

    trl = prm_peer.check(given.peer_python)
    if given.folder is None or given.folder.exists():
        raise InputError(f"--folder {given.folder}: name a folder for the peer's model that does not exist yet")
    length = given.max_length or 1024
    encoder = prm_chains.encoder_of(given.base, length)
    groups = prm_chains.by_problem(prm_chains.read(given.data, given.labels), given.seed)
    dev, train = groups[:32], [example for group in groups[32:] for example in group]
    held = [next((example for example in group if prm_chains.fits(encoder, example)), None) for group in dev]
    kept = [example for example in train if prm_chains.fits(encoder, example)][: given.chains]
    if not kept or not any(held):
        raise InputError(f"--data {given.data}: no chain fits {length} tokens; raise --max-length")
    # Within the problems' order of the seed chains of one problem follow each other; the trainer shuffles them.
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        result = prm_measure.run_worker(str(given.peer_python), "prm_peer", {
            "base": str(given.base.resolve()), "train": prm_chains.write_rows(scratch / "train.jsonl", kept),
            "dev": prm_chains.write_rows(scratch / "dev.jsonl", [example for example in held if example]),
            "settings": given.peer_settings, "device": given.device, "seed": given.seed, "max_length": length,
            "learning_rate": given.learning_rate, "seconds": 60 if given.quick else given.seconds,
            "folder": str(given.folder.resolve()), "scratch": name,
        }, given.threads)
    # A folder our own commands cannot read would be found out hours later.
    load_foreign(given.folder, device="cpu")
    return [], {"trl": trl, "device": given.device, "chains": len(kept), "labels": given.labels,
                "folder": given.folder.name, "model_version": model_version(str(given.folder)), "training": result}

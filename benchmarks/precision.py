"""The recipe for PRM800K on a processor without bfloat16 instructions: as it is, and as it was once written, in
bfloat16 and reading five times as many rows.

    python -m benchmarks.precision --base SMOLLM2_FOLDER --data phase1_train.parquet --out FILE

oneDNN is held to AVX2, which older processors have. Each measurement is a process of its own: the time in which the
backbone reads one row of rated steps, as training does; in turn, so that both meet the same machine.

As a program (`python -m benchmarks.precision JOB RESULT`) this is one measurement.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import Bar, arguments, write
from prm_core import config as configuration
from prm_core.platform import environment, store

ISA = "AVX2"
WAYS = ("auto", "bfloat16")
PROFILE, FORMAT = "prm800k-smollm2", "prm800k_flat"
# Rows that it once read: 300 updates of 8.
ONCE = 2400
FASTER = 20.0


def main() -> None:
    """Both ways in turn; writes and prints the ratio."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--base", type=Path, required=True, help="folder of SmolLM2-135M")
        parser.add_argument("--data", type=Path, required=True, help="PRM800K's file")
        parser.add_argument("--tokens", type=int, default=256, help="of the row that is read")

    given = arguments("precision", more)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        ask, answer = Path(name) / "job.json", Path(name) / "result.json"
        for _ in range(1 if given.quick else given.repeats):
            for way, runs in found.items():
                store.write_json(ask, {"precision": way, "base": str(given.base), "data": str(given.data),
                                       "tokens": given.tokens})
                subprocess.run([sys.executable, "-m", "benchmarks.precision", str(ask), str(answer)], check=True,
                               env={**os.environ, "ONEDNN_MAX_CPU_ISA": ISA, "OMP_NUM_THREADS": "1"})
                runs.append(store.read_json(answer))
    ratios = [slow["seconds"] / fast["seconds"] for fast, slow in zip(found["auto"], found["bfloat16"], strict=True)]
    training = configuration.parse(_raw(), "benchmark").train_prm
    fewer = ONCE / (training.max_updates * training.rows_per_update)
    whole = [fewer * ratio for ratio in ratios]
    middle = statistics.median(whole)
    bar = Bar(f"{PROFILE}, {ISA}: time of reading rated steps as once written / as it is", middle, min(whole),
              max(whole), f">= {FASTER:g}", middle >= FASTER)
    write(given, [bar], runs=found, fewer_rows=fewer, row_ratios=ratios)


def _raw() -> dict[str, Any]:
    return configuration.resolve(environment.project_root() / configuration.PARAMS_FILE, PROFILE)


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """One measurement: seconds of the second of two readings, and the precision that was taken."""
    import dataclasses

    from prm_core.formats import FORMATS
    from prm_core.models.encoder import Encoder
    from prm_core.models.loading import load_tokenizer
    from prm_core.models.precision import resolve
    from prm_core.scoring.reward import ProcessRewardModel
    from prm_core.training.examples import encode_examples
    from prm_core.training.reward.labelled import examples_of
    from prm_core.training.reward.loop import pack_rows
    from prm_core.training.reward.probe import read_regression

    raw = configuration.merge(_raw(), {
        "encoder": {"max_length": job["tokens"]},
        "train_prm": {"row_tokens": job["tokens"], "precision": job["precision"]}})
    config = resolve(configuration.parse(raw, "benchmark"))
    encoder = Encoder(load_tokenizer(job["base"]), config.encoder)
    chains = itertools.islice(FORMATS[FORMAT].read(Path(job["data"]), neutral="right"), 50)
    encoded, _ = encode_examples(encoder, examples_of(chains, "process", mask_after_error=True), "process")
    rows = pack_rows(encoded, [], config.train_prm, share=True, seed=0).rows[:1]
    mixed = config.train_prm.precision == "bfloat16"
    model = ProcessRewardModel.from_backbone(
        job["base"], surprisal=True, encoder=dataclasses.asdict(config.encoder), device="cpu",
        dtype="float32" if mixed else config.models.dtype)
    times = []
    for _ in range(2):
        start = time.monotonic()
        read_regression(model, rows, pad_id=encoder.pad_id, rows_per_pass=1, mixed=mixed, whole_chain=False)
        times.append(time.monotonic() - start)
    return {"seconds": times[-1], "precision": config.train_prm.precision}


if __name__ == "__main__":
    environment.apply()
    if len(sys.argv) == 3 and sys.argv[1].endswith("job.json"):
        store.write_json(Path(sys.argv[2]), work(store.read_json(Path(sys.argv[1]))))
    else:
        main()

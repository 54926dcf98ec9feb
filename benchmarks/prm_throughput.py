"""Training throughput: our trainer and TRL's on the same chains, each measurement in a fresh process, in turn.

As a program (`python -m benchmarks.prm_throughput JOB RESULT`) this is our side of one measurement.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import prm_chains, prm_measure, prm_peer
from benchmarks.prm_measure import Clock, Update
from benchmarks.report import Bar
from prm_core import config as configuration
from prm_core.platform import environment

if TYPE_CHECKING:
    from prm_core.config import Config, RewardTrainingConfig
    from prm_core.training.reward.loop import Rows
    from prm_core.training.trees import Row

# TRL's default; our updates are sized to hold as many chains on average.
CHAINS_PER_UPDATE = 8
PROFILE = "prm800k-smollm2"
# Chains packed into rows without padding, sharing nothing; a batch of chains with padding, which is what models whose
# attention takes no mask get; chains that share their steps.
OURS, APART, TREES = "ours, chains packed", "ours, chains apart", "ours, trees"
PEER, TUNED = "TRL default", "TRL tuned"
ROWS = (OURS, PEER, TREES, TUNED, APART)
SPEED, COVERED, MEMORY = "tokens_per_second", "chain_tokens_per_second", "memory_peak"
FASTER, MIB = 1.5, 2**20


def measure(given: argparse.Namespace) -> tuple[list[Bar], dict[str, Any]]:
    """All rounds, and the bars on them."""
    trl = prm_peer.check(given.peer_python)
    length = given.max_length or (512 if given.quick else 1024)
    count = given.chains or (24 if given.quick else 72)
    # At least three updates: one warms up.
    count = max(3, round(count / CHAINS_PER_UPDATE)) * CHAINS_PER_UPDATE
    encoder = prm_chains.encoder_of(given.base, length)
    # A third as many problems: their trees hold about as many tokens as the sample of chains.
    chains = prm_chains.draw(prm_chains.read(given.data, given.labels), encoder, chains=count, problems=count // 3,
                             dev=8 if given.quick else 32, seed=given.seed)
    rounds: Rounds = {row: [] for row in ROWS if not (given.quick and row == APART)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {part: prm_chains.write_rows(folder / f"{part}.jsonl", getattr(chains, part))
                 for part in ("sample", "trees", "dev")}
        files["grouped"] = prm_chains.write_rows(folder / "grouped.jsonl", prm_chains.grouped(
            chains.sample, encoder, CHAINS_PER_UPDATE, given.seed))
        for number in range(1 if given.quick else given.repeats):
            for row, results in rounds.items():
                job = {"base": str(given.base.resolve()), "dev": files["dev"], "train": files["sample"],
                       "device": given.device, "seed": given.seed + number, "max_length": length, "scratch": name}
                results.append(_run(row, job, files, given))
                _say(number, row, results[-1])
    data = {"chains": count, "chains_of_the_trees": len(chains.trees), "problems": count // 3,
            "dev_chains": len(chains.dev), "max_length": length, "labels": given.labels,
            "tokens_a_chain": statistics.mean(len(encoder.encode(e.prompt, e.steps).ids) for e in chains.sample)}
    summary = {row: _summary(results) for row, results in rounds.items()}
    return bars(rounds), {"beside": others(rounds), "trl": trl, "device": given.device, "threads": given.threads,
                          "data": data, "summary": summary, "rounds": rounds}


def _run(row: str, job: dict[str, Any], files: dict[str, str], given: argparse.Namespace) -> dict[str, Any]:
    if row in (PEER, TUNED):
        job |= {"settings": "default", "learning_rate": given.learning_rate}
        if row == TUNED:
            job |= {"settings": "given_order", "train": files["grouped"]}
        return prm_measure.run_worker(str(given.peer_python), "prm_peer", job, given.threads)
    job |= {"trees": files["trees"] if row == TREES else None, "apart": row == APART, "ours": given.ours,
            "surprisal": given.surprisal}
    return prm_measure.run_worker(sys.executable, "prm_throughput", job, given.threads)


def _say(number: int, row: str, result: dict[str, Any]) -> None:
    from rich.console import Console

    Console(stderr=True).log(
        f"round {number + 1}, {row}: {result[SPEED]:.1f} tokens/s, {result[COVERED]:.1f} chain tokens/s, "
        f"{result[MEMORY] / MIB:.0f} MiB, dev loss {result['dev_loss']:.3f}", _stack_offset=2)


def _summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds of a row, with the lowest and highest."""
    names = [name for name, value in results[0].items() if isinstance(value, (int, float)) and name != "threads"]
    values = {name: [result[name] for result in results] for name in names}
    return {name: {"median": statistics.median(found), "low": min(found), "high": max(found)}
            for name, found in values.items()}


Rounds = dict[str, list[dict[str, Any]]]


def ratio(rounds: Rounds, row: str, other: str, figure: str) -> tuple[float, float, float]:
    """Median, lowest and highest over the rounds of one row's figure over another's."""
    found = [mine[figure] / theirs[figure] for mine, theirs in zip(rounds[row], rounds[other], strict=True)]
    return statistics.median(found), min(found), max(found)


def bars(rounds: Rounds) -> list[Bar]:
    """What is asked: real tokens against real tokens, nothing shared between chains, TRL as it comes."""
    speed, memory = ratio(rounds, OURS, PEER, SPEED), ratio(rounds, OURS, PEER, MEMORY)
    return [Bar(f"real tokens/s, {OURS} / {PEER}", *speed, ">= 1.5", speed[0] >= FASTER),
            Bar(f"peak memory, {OURS} / {PEER}", *memory, "<= 1", memory[0] <= 1)]


def others(rounds: Rounds) -> list[dict[str, Any]]:
    """Every way of ours against both of TRL's: chain tokens covered a second, and memory."""
    return [prm_measure.beside(f"{what}, {row} / {other}", *ratio(rounds, row, other, figure))
            for row in (OURS, TREES, APART) if row in rounds for other in (PEER, TUNED)
            for what, figure in (("chain tokens covered/s", COVERED), ("peak memory", MEMORY))]


# ---------------------------------------------------------------------------------------- our side


def work(job: dict[str, Any]) -> dict[str, Any]:
    """One epoch over a job's chains (of their trees: as many updates), timed, then the held-out figures.

    Args:
        job: base, train, dev, trees (files of chains; trees None for chain by chain), apart (chain by chain with
            padding), device, seed, max_length, surprisal, ours (settings of train_prm over the profile's), scratch.
    """
    from prm_core.models.encoder import Encoder
    from prm_core.models.loading import load_tokenizer
    from prm_core.scoring.reward import ProcessRewardModel
    from prm_core.training.examples import encode_examples
    from prm_core.training.reward.loop import pack_rows, train_reward_model
    from prm_core.training.reward.recipe import return_freed_memory

    config = _config(job)
    encoder = Encoder(load_tokenizer(job["base"]), config.encoder)
    encoded = {part: encode_examples(encoder, list(prm_chains.read_rows(job[part])), "process")[0]
               for part in ("train", "trees", "dev") if job[part]}
    rows = pack_rows(encoded["train"], [], config.train_prm, share=False, seed=job["seed"])
    for piece in (piece for row in rows.rows for piece in row):
        # What our trainer does with chains of different problems: packed, and nothing to share.
        piece.tree.apart = job["apart"]
    updates = math.ceil(len(encoded["train"]) / CHAINS_PER_UPDATE)
    settings = dataclasses.replace(config.train_prm, rows_per_update=max(1, math.ceil(len(rows.rows) / updates)))
    if job["trees"]:
        rows = pack_rows(encoded["trees"], [], settings, share=True, seed=job["seed"])
        # As many updates as chain by chain, however few rows are left; evaluated after the last.
        settings = dataclasses.replace(settings, epochs=updates, max_updates=updates, eval_every=updates)
    dev = pack_rows(encoded["dev"], [], settings, share=False, seed=job["seed"])
    if job["device"] == "cpu":
        # As `train_on` does.
        return_freed_memory()
    model = ProcessRewardModel.from_backbone(
        job["base"], surprisal=job["surprisal"], encoder=dataclasses.asdict(config.encoder), dtype="float32",
        device=job["device"])
    if settings.gradient_checkpointing:
        model.network.activation_checkpointing_enable()
    clock = Clock(job["device"])

    def report(values: dict[str, float], update: int) -> None:
        if f"{model.kind}/loss" in values:
            clock.tick()

    clock.start()
    with tempfile.TemporaryDirectory(dir=job["scratch"]) as scratch:
        train_reward_model(model, rows, dev, settings, pad_id=encoder.pad_id, seed=job["seed"], work=Path(scratch),
                           report=report)
    seen = updates_of_run(rows, settings, job["seed"], len(clock.ends))
    return clock.figures(seen) | _dev(model, encoder, job) | {"settings": dataclasses.asdict(settings)}


def _config(job: dict[str, Any]) -> Config:
    """The profile for PRM800K, with what the comparison fixes and what the caller sets."""
    raw = configuration.resolve(environment.project_root() / configuration.PARAMS_FILE, PROFILE)
    # As TRL's side reads chains: steps end with a token of text.
    fixed = {"encoder": {"max_length": job["max_length"], "separator": prm_chains.SEPARATOR, "renderer": 1,
                         "chat_template": False},
             "train_prm": {"epochs": 1, "max_updates": 0, "row_tokens": job["max_length"], "rows_per_pass": 1,
                           "precision": "bfloat16", "class_weights": "none", "eval_every": 0, "log_every": 1,
                           # All weights, as the peer, at its rate.
                           "learning_rate": 1e-5, "checkpoint_every": 10**6, **job["ours"]}}
    return configuration.parse(configuration.merge(raw, fixed), "--ours")


def updates_of_run(rows: Rows, settings: RewardTrainingConfig, seed: int, count: int) -> list[Update]:
    """What each of the first updates computes, in the order `train_reward_model` goes through the rows."""
    from prm_core.training.reward.loop import updates_of

    factor = rows.chain_tokens / rows.tokens
    return [_update(part, settings.rows_per_pass, factor)
            for _, part in updates_of(rows.rows, settings.rows_per_update, seed, 0, count)]


def _update(rows: Sequence[Row], rows_per_pass: int, factor: float) -> Update:
    positions, tokens, chains = 0, 0, 0
    for start in range(0, len(rows), rows_per_pass):
        part = rows[start : start + rows_per_pass]
        pieces = [piece for row in part for piece in row]
        apart = pieces[0].tree.apart
        widths = [piece.tokens for piece in pieces] if apart else [sum(piece.tokens for piece in row) for row in part]
        positions += len(widths) * max(widths)
        tokens += sum(piece.tokens for piece in pieces)
        # A chain ends at a node that no other goes on from.
        chains += sum(len(set(piece.nodes) - {piece.tree.nodes[index].parent for index in piece.nodes})
                      for piece in pieces)
    return Update(positions, tokens, tokens * factor, chains)


def _dev(model: Any, encoder: Any, job: dict[str, Any]) -> dict[str, float]:
    """Held-out figures in float32, chain by chain, as the peer's."""
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.scorer import RewardScorer

    scorer = RewardScorer(model, encoder, Calibrator("identity", 0), "benchmark", 1)
    examples = list(prm_chains.read_rows(job["dev"]))
    scores = scorer.score([(example.prompt, example.steps) for example in examples])
    known = [(score, int(target)) for example, found in zip(examples, scores, strict=True)
             for score, target in zip(found.raw_scores, example.targets, strict=True) if target == target]
    return prm_measure.step_figures([score for score, _ in known], [target for _, target in known])


if __name__ == "__main__":
    prm_measure.worker(work)

"""The reward-model benchmark: its samples, what it counts as a token, its figures, and what it asks of a peer."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest

from benchmarks import (
    prm_chains,
    prm_embedded,
    prm_measure,
    prm_peer,
    prm_processbench,
    prm_scoring,
    prm_throughput,
    report,
)
from benchmarks import prm_training as benchmark
from benchmarks.prm_measure import Clock, Update, step_figures
from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.evaluation.metrics import Estimate
from prm_core.models.encoder import Encoder
from prm_core.models.tokenizer import train_tokenizer
from prm_core.platform import store
from prm_core.training.examples import IGNORED, Example, encode_examples
from prm_core.training.reward.loop import pack_rows, updates_of
from prm_core.types import Step
from tests.builders import tiny, warm_python
from tests.builders.training import CHAINS, make_encoder, save_lm, small_config


def example(number: int, problem: int, targets: tuple[float, ...]) -> Example:
    prompt, steps = CHAINS[problem]
    # Chains of one problem share their steps but the last, and differ in length.
    last = Step(steps[len(targets) - 1].text + " 1" * number)
    return Example(prompt, prompt, (*steps[: len(targets) - 1], last), targets)


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(max_length=128)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Four chains of each of six problems, of three steps; the second step has no label."""
    return [example(number, problem, (1.0, IGNORED, float(number % 2)))
            for problem in range(6) for number in range(4)]


@pytest.fixture
def given(tmp_path) -> argparse.Namespace:
    return argparse.Namespace(peer_python=None, quick=True, device="cpu", threads=1, seed=0,
                              our_result=tmp_path / "ours.json", our_model=None, our_training=None,
                              peer_result=tmp_path / "peer.json", peer_model=None, peer_training=None,
                              processbench=None)


# --------------------------------------------------------------------------------------------- chains


def test_dev_problems_are_not_trained_on_and_the_seed_decides(examples, encoder):
    drawn = prm_chains.draw(examples, encoder, chains=5, problems=3, dev=2, seed=1)

    train, dev = ({one.problem_id for one in side} for side in (drawn.trees, drawn.dev))
    assert len(drawn.sample) == 5
    assert len(drawn.trees) == 12, "all chains of the three problems"
    assert len(drawn.dev) == len(dev) == 2, "one a problem"
    assert len(train) == 3
    assert not train & dev
    assert {one.problem_id for one in drawn.sample} <= train
    again = prm_chains.draw(examples, encoder, chains=5, problems=3, dev=2, seed=1)
    assert [one.steps for one in again.sample] == [one.steps for one in drawn.sample]
    assert drawn.sample != prm_chains.draw(examples, encoder, chains=5, problems=3, dev=2, seed=2).sample


def test_chains_longer_than_the_context_are_left_out_and_too_few_is_an_error(examples):
    short = make_encoder(max_length=40)
    lengths = [len(make_encoder().encode(one.prompt, one.steps).ids) for one in examples]
    fit = {one.problem_id for one, length in zip(examples, lengths, strict=True) if length <= 40}

    with pytest.raises(InputError, match=f"--data has {len(fit)} problems with chains of up to 40 tokens"):
        prm_chains.draw(examples, short, chains=4, problems=5, dev=2, seed=0)


def test_a_row_of_the_peer_has_every_label_and_comes_back_as_it_was(examples, tmp_path):
    row = prm_chains.to_row(examples[1])
    assert row["labels"] == [1, -100, 1]
    assert row["completions"] == [step.text for step in examples[1].steps]

    back = list(prm_chains.read_rows(prm_chains.write_rows(tmp_path / "rows.jsonl", examples)))

    assert [one.steps for one in back] == [one.steps for one in examples]
    assert [[t for t in one.targets if t == t] for one in back] == [[1.0, t.targets[2]] for t in examples]
    assert all(math.isnan(one.targets[1]) for one in back)


def test_labels_of_shared_steps_in_every_chain_or_in_the_first(tmp_path):
    rows = [{"instruction": "Q?", "responses": before, "next_response": text, "rating": rating, "answer": None,
             "is_human_response": False, "is_solution": False, "is_preferred_response": True}
            for before, text, rating in (([], "a", 1), (["a"], "b", 1), (["a"], "c", -1))]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def targets(labels: str) -> list[list[float | None]]:
        return [[None if t != t else t for t in one.targets] for one in prm_chains.read(path, labels)]

    assert targets("all") == [[1.0, 1.0], [1.0, 0.0]]
    assert targets("once") == [[1.0, 1.0], [None, 0.0]]


def test_grouped_chains_are_the_same_chains_with_less_padding(examples, encoder):
    longer = examples + [example(9, problem, (1.0,) * 4) for problem in range(6)]
    lengths = [len(encoder.encode(one.prompt, one.steps).ids) for one in longer]
    grouped = prm_chains.grouped(longer, encoder, 5, seed=0)
    ordered = [len(encoder.encode(one.prompt, one.steps).ids) for one in grouped]

    assert sorted(ordered) == sorted(lengths)
    assert sum(5 * max(ordered[i : i + 5]) for i in range(0, 30, 5)) < sum(
        5 * max(lengths[i : i + 5]) for i in range(0, 30, 5))


# --------------------------------------------------------------------------------------------- figures


def test_step_figures_of_a_case_worked_by_hand():
    figures = step_figures([0.9, 0.8, 0.4, 0.3, 0.6], [1, 1, 1, 0, 0])

    # Right: 2 hits, 2 mistakes. Wrong: 1 hit, 2 mistakes.
    assert figures["dev_f1_right"] == pytest.approx(4 / 6)
    assert figures["dev_f1_wrong"] == pytest.approx(2 / 4)
    assert figures["dev_f1"] == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert figures["dev_loss"] == pytest.approx(-sum(map(math.log, (0.9, 0.8, 0.4, 0.7, 0.4))) / 5)
    assert figures["dev_steps"] == 5


def test_the_first_update_is_not_timed_and_batches_fetched_ahead_do_not_count():
    clock = Clock("cpu", ends=[10.0, 12.0, 15.0], before=100, peak=300)
    updates = [Update(999, 999, 999, 9), Update(50, 40, 80, 8), Update(70, 60, 120, 7), Update(1000, 1000, 1000, 8)]

    figures = clock.figures(updates)

    assert figures["seconds"] == 5
    assert figures["positions_per_second"] == 24
    assert figures["tokens_per_second"] == 20
    assert figures["chain_tokens_per_second"] == 40
    assert figures["chains_per_update"] == 7.5
    assert (figures["memory_before"], figures["memory_peak"]) == (100, 300)
    with pytest.raises(ValueError, match="nothing is left to time"):
        Clock("cpu", ends=[10.0]).figures(updates)


def test_the_peak_of_memory_stays_when_memory_is_given_back():
    before = prm_measure.memory("cpu")
    held = bytearray(200 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    del held
    after = prm_measure.memory("cpu")

    assert after[1] >= before[0] + 190 * 2**20
    assert after[0] < after[1]


def test_tokens_of_an_update_with_padding_packed_and_shared(examples, encoder):
    config = dataclasses.replace(small_config().train_prm, row_tokens=256, rows_per_update=1000)
    encoded, _ = encode_examples(encoder, examples, "process")
    lengths = [len(one.chain.ids) for one in encoded]
    found = {}
    for name in ("apart", "packed", "trees"):
        rows = pack_rows(encoded, [], config, share=name == "trees", seed=0)
        if name == "packed":
            for piece in (piece for row in rows.rows for piece in row):
                piece.tree.apart = False
        (found[name],) = prm_throughput.updates_of_run(rows, dataclasses.replace(config, rows_per_pass=1), 0, 1)
        (_, order), = updates_of(rows.rows, 1000, 0, 0, 1)
        if name == "apart":
            widths = [[piece.tokens for piece in row] for row in order]
            assert found[name].positions == sum(len(row) * max(row) for row in widths)

    total = sum(lengths)
    assert found["apart"].tokens == found["packed"].tokens == total
    assert found["packed"].positions == total, "one row a pass holds no padding"
    assert found["apart"].positions > total
    assert found["trees"].tokens < total
    assert {round(one.chain_tokens) for one in found.values()} == {total}
    assert {one.chains for one in found.values()} == {24}


def test_ratios_go_round_by_round():
    def row(*speeds: float) -> list[dict[str, float]]:
        return [{"tokens_per_second": s, "chain_tokens_per_second": 2 * s, "memory_peak": 100 / s} for s in speeds]

    rounds = {prm_throughput.OURS: row(20, 10, 40), prm_throughput.PEER: row(10, 10, 10),
              prm_throughput.TREES: row(80, 80, 80), prm_throughput.TUNED: row(20, 20, 20)}
    speed, memory = prm_throughput.bars(rounds)

    assert (speed.value, speed.low, speed.high, speed.holds) == (2, 1, 4, True)
    assert (memory.value, memory.holds) == (0.5, True)
    beside = {one["name"]: one["value"] for one in prm_throughput.others(rounds)}
    assert beside["chain tokens covered/s, ours, trees / TRL tuned"] == 4
    assert len(beside) == 8, "two rows of ours, two of TRL's, two figures"


# ----------------------------------------------------------------------------------------------- sides


@pytest.mark.parametrize(("trees", "apart"), [(False, False), (False, True), (True, False)])
def test_our_side_of_a_measurement(tmp_path, examples, trees, apart):
    # A base as TRL's side reads it: a line break is one token of text.
    texts = [text for prompt, steps in CHAINS for text in (prompt, *(step.text for step in steps))]
    tokenizer = train_tokenizer(texts, ["\n"])
    base = save_lm(tmp_path / "base", Encoder(tokenizer, EncoderConfig(separator="\n", renderer=1, max_length=128)))
    files = {name: prm_chains.write_rows(tmp_path / f"{name}.jsonl", rows)
             for name, rows in (("train", examples), ("trees", examples), ("dev", examples[:2]))}

    result = prm_throughput.work({
        "base": str(base), "train": files["train"], "trees": files["trees"] if trees else None, "dev": files["dev"],
        "apart": apart, "device": "cpu", "seed": 0, "max_length": 128, "surprisal": False,
        "ours": {"row_tokens": 256, "learning_rate": 0.0, "head_learning_rate": 1e-12}, "scratch": str(tmp_path),
    })

    assert result["updates"] >= 1
    assert result["tokens_per_second"] > 0
    assert result["memory_peak"] >= result["memory_before"] > 0
    # Nothing was learnt, so every step is as likely right as wrong.
    assert result["dev_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert result["dev_steps"] == 4
    assert (result["positions_per_second"] > result["tokens_per_second"]) == apart
    assert (result["chain_tokens_per_second"] > 1.01 * result["tokens_per_second"]) == trees


def test_the_guides_server_makes_two_passes_over_every_prefix(tmp_path, encoder):
    server = prm_scoring.GuideServer(str(save_lm(tmp_path, encoder)), "float32", "cpu")
    lengths = []
    server.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    prompt, steps = CHAINS[0]
    texts = [step.text for step in steps]

    scores = server.score(prompt, texts)

    assert len(scores) == len(texts)
    assert lengths[::2] == lengths[1::2] == [
        len(encoder.tokenizer("\n".join([prompt, *texts[: index + 1]]))["input_ids"]) for index in range(len(texts))]


def test_trajectories_of_the_domain_have_twelve_steps_that_our_encoder_takes(encoder):
    found = prm_scoring._of_domain(encoder, 3, 0)

    assert [len(steps) for _, steps in found] == [prm_scoring.STEPS] * 3
    assert found == prm_scoring._of_domain(encoder, 3, 0)


def test_a_python_without_the_trainer_is_an_error_that_says_how_to_make_one():
    with pytest.raises(InputError, match=r"no PRMTrainer there .*pip install -r requirements.lock trl==1.13.0"):
        prm_peer.check(Path(sys.executable))
    with pytest.raises(InputError, match="does not run"):
        prm_peer.check(Path("/nowhere/python"))
    with pytest.raises(InputError, match="--peer-python is needed"):
        prm_peer.check(None)


def test_a_side_that_fails_tells_its_last_words(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{warm_python.CLIENT}" "$@"\n')
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"benchmarks.prm_throughput ended with 1:(.|\n)*KeyError: 'max_length'"):
        prm_measure.run_worker(str(python), "prm_throughput", {"base": "x"}, 1)


# --------------------------------------------------------------------------------------------- embedded


def test_oracle_labels_go_up_to_the_first_error_as_automatic_ones_do():
    right, wrong = (prm_embedded.oracle_labels(tiny.mia(), tiny.chain(texts).trajectory)
                    for texts in (tiny.RIGHT, (tiny.RIGHT[0], *tiny.WRONG[1:])))

    assert [(one.trajectory_id, one.step_index, one.is_correct) for one in right] == [
        ("t0", 0, True), ("t0", 1, True), ("t0", 2, True)]
    assert [(one.step_index, one.is_correct) for one in wrong] == [(0, True), (1, False)]


def test_the_ratio_of_accuracy_lost_is_a_number_where_the_orm_loses_nothing():
    def run(prm: float, orm: float) -> prm_embedded.Run:
        figures = {f"{model}/all/accuracy_lost": Estimate(lost, lost, lost)
                   for model, lost in (("prm", prm), ("orm", orm))}
        if orm > 0:
            figures["prm vs orm/all/lost_ratio"] = Estimate(prm / orm, 0.25, 0.75)
        return prm_embedded.Run(0, {}, {}, {}, figures)

    name, *figures = prm_embedded._lost([run(0.1, 0.2)], "all")
    assert name == "adversarial suite, all edits: accuracy lost, PRM (10.0 points) / ORM (20.0)"
    assert figures == pytest.approx([0.5, 0.25, 0.75]), "the interval of the only seed"
    several = [run(0.1, 0.2), run(0.3, 0.4), run(0.1, 0.5)]
    assert prm_embedded._lost(several, "all")[1:] == pytest.approx((0.5, 0.2, 0.75))
    assert prm_embedded._lost([run(0.1, -0.2)], "all")[1:] == pytest.approx((100, 100, 100))


def test_a_workspace_without_a_finished_run_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--workspace .*: no finished run .*data/train.jsonl is missing"):
        prm_embedded.Workspace.read(tmp_path)


# ------------------------------------------------------------------------------------------ processbench


def evaluated(path: Path, f1: float, file: str = "gsm8k.json", benchmark: str = "processbench") -> None:
    store.write_json(path, {
        "model": path.stem, "benchmark": benchmark, "threshold": 0.4, "threshold_rule": "chosen on gsm8k.json",
        "threshold_from": "gsm8k.json", "seed": 0, "resamples": 1000,
        "files": {file: {"prm/first_error_f1": f1, "prm/first_error_f1_low": f1 - 0.02,
                         "prm/first_error_f1_high": f1 + 0.02, "random/first_error_f1": 0.19}},
    })


def test_processbench_bars_from_two_results(given):
    evaluated(given.our_result, 0.43)
    evaluated(given.peer_result, 0.45)

    (least, gain), more = prm_processbench.measure(given)

    assert (least.value, least.low, least.high) == pytest.approx((43, 41, 45))
    assert least.holds
    assert gain.value == pytest.approx(-2)
    assert not gain.holds
    assert more["evaluation"]["ours"]["command"] == (
        "prm evaluate gsm8k.json --model ours --benchmark processbench --threshold-from gsm8k.json --seed 0 "
        "--resamples 1000 --out FILE")
    assert {"name": "floor: a uniform guess", "value": 19.0, "low": None, "high": None} in more["beside"]


def test_processbench_results_that_do_not_go_together(given):
    evaluated(given.our_result, 0.31)
    with pytest.raises(InputError, match=r"--peer-result .*: no such file; name --peer-model and --processbench"):
        prm_processbench.measure(given)
    evaluated(given.peer_result, 0.31, file="math.json")
    with pytest.raises(InputError, match="different files"):
        prm_processbench.measure(given)
    evaluated(given.peer_result, 0.31, benchmark="bigbench_mistake")
    with pytest.raises(InputError, match="not a result of `prm evaluate --benchmark processbench`"):
        prm_processbench.measure(given)


# ---------------------------------------------------------------------------------------------- options


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prm_training")
    benchmark._more(parser)
    return report.parsed(parser, words)


def test_the_recorded_command_has_what_was_given_without_folders():
    given = options("throughput", "--base", "/somewhere/base", "--chains", "40", "--ours", "row_tokens: 768",
                    "gradient_checkpointing: true", "--surprisal", "--threads", "2")

    assert given.ours == {"row_tokens": 768, "gradient_checkpointing": True}
    assert given.command == (
        "python -m benchmarks.prm_training throughput --base base --seed 0 --device auto --threads 2 --chains 40 "
        "--labels all --surprisal --ours 'row_tokens: 768' 'gradient_checkpointing: True' --peer-settings default "
        "--seconds 3600")


def test_missing_options_and_paths_are_named(tmp_path):
    with pytest.raises(InputError, match="throughput needs --data, --peer-python"):
        benchmark.check(options("throughput", "--base", str(tmp_path)), benchmark.PARTS["throughput"][1])
    with pytest.raises(InputError, match=r"--base .*nowhere: not there"):
        benchmark.check(options("scoring", "--base", str(tmp_path / "nowhere")), ())

"""The benchmark over seeds: what makes a bar, what the stand-ins for other processors are, what a result keeps."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import robustness, robustness_bars, robustness_chains, robustness_figures, robustness_timing
from benchmarks.robustness_chains import ChainFailed, Run
from prm_core.errors import InputError
from prm_core.evaluation.judged_chains import Chain
from prm_core.platform import store, sums
from prm_core.types import StepLabel
from tests import ROOT
from tests.builders import tiny
from tests.builders.quality import make_config


def record(level: str, seed: int, variant: str = "", **figures: float) -> dict:
    return {"name": Run(level, seed, variant).name, "level": level, "seed": seed, "variant": variant, "code": "same",
            "seconds": {"warmup": {"wall": 9.0, "cpu": 8.0}, "oracle": {"wall": 2.0, "cpu": 1.0}}, "figures": figures}


def judged(runs: list[dict]) -> dict[str, tuple[float, bool]]:
    return {bar.name: (bar.value, bar.holds) for bar in robustness_bars.bars(runs)}


# ------------------------------------------------------------------------------------------------- bars


def test_worst_median_and_spread_over_seeds_and_the_stand_ins_apart():
    runs = [record("default", seed, **{"test/prm_f1": f1}) for seed, f1 in enumerate((99.0, 97.0, 98.5))]
    found = judged([*runs, record("default", 0, "avx2", **{"test/prm_f1": 96.0})])

    assert found == {
        "default: PRM first-error F1, %, worst of 3 seeds": (97.0, True),
        "default: PRM first-error F1, %, median": (98.5, True),
        "default: PRM first-error F1, %, best - worst": (2.0, True),
        "default: PRM first-error F1, %, worst of 1 stand-ins for other processors": (96.0, False),
    }


def test_a_chain_without_the_figure_or_the_end_misses_the_bar():
    whole, without = record("hard", 0, **{"shifted/ece": 0.01}), record("hard", 1)
    failed = {**record("hard", 2), "failed": "stage label of hard-2 ended with 3"}

    found = judged([whole, without, failed])

    assert found["hard: ECE, shifted, worst of 1 seeds"] == (0.01, False)
    assert found["chains that ran to their end"] == (2, False)


def test_a_bar_with_two_sides_counts_what_is_furthest_outside():
    runs = [record("hard", seed, backbone_pass_at_1=right) for seed, right in enumerate((72.0, 84.0, 88.0))]
    assert judged(runs)["hard: backbone pass@1, dev, %, worst of 3 seeds"] == (88.0, False)
    assert judged(runs[:2])["hard: backbone pass@1, dev, %, worst of 2 seeds"][1]


def test_merged_labels_are_held_against_the_best_annotator():
    assert robustness_bars.merged_less_best(
        {"labels/rollout/f1": 60, "labels/mc_dropout/f1": 99, "labels/merged/f1": 98.5}) == -0.5
    assert robustness_bars.merged_less_best({"labels/merged/f1": 98.5}) is None


def test_best_of_n_goes_by_n_and_not_by_name():
    ways = {"promoted": {1: 40.0, 2: 50.0, 8: 60.0, 16: 59.5}, "prm": {1: 40.0, 2: 51.0, 8: 58.0, 16: 59.0},
            "orm": {1: 40.0, 2: 49.0, 8: 61.0, 16: 59.0}}
    figures = {f"test/{way}_at_{n}": accuracy for way, curve in reversed(ways.items())
               for n, accuracy in reversed(curve.items())}

    assert robustness_bars.by_n(figures, "test", "promoted") == [40, 50, 60, 59.5]
    assert robustness_bars.smallest_rise("test")(figures) == -0.5
    assert robustness_bars.less_better_of_both("test")(figures) == -1, "at 2 by the PRM, at 8 by the ORM"
    assert robustness_bars.smallest_rise("shifted")(figures) is None


@pytest.mark.parametrize(("outside", "holds"), [(1, True), (2, False)])
def test_nine_intervals_of_ten_hold_the_true_label_error(outside, holds):
    runs = [record(level, seed, label_error_low=1.0, label_error_high=3.0, label_error_true=2.0)
            for level in ("default", "hard") for seed in range(5)]
    for run in runs[:outside]:
        run["figures"]["label_error_true"] = 3.5

    (name, (share, held)), = judged(runs).items()

    assert name == "label error: its 95 % interval holds the truth, share of 10 (level x seed)"
    assert (share, held) == (pytest.approx(1 - outside / 10), holds)


def test_the_summary_has_median_worst_best_and_every_run_and_is_drawn(tmp_path):
    runs = [record("default", seed, **{"test/ece": ece}) for seed, ece in enumerate((0.01, 0.03, 0.02))]
    rows = robustness_bars.summary([*runs, record("default", 0, "threads-2", **{"test/ece": 0.5})])

    by_name = {row["name"]: row for row in rows}
    assert by_name.keys() == {"ECE", "the chain, processor seconds"}
    assert by_name["ECE"] == {
        "level": "default", "name": "ECE", "median": 0.02, "worst": 0.03, "best": 0.01,
        "runs": {"default-0": 0.01, "default-1": 0.03, "default-2": 0.02, "default-0-threads-2": 0.5}}
    assert by_name["the chain, processor seconds"]["median"] == 8, "the PRM from oracle labels is no part of a chain"
    robustness_bars.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_times_are_shares_of_the_other_builds():
    rounds = [{"base": 100.0, "this": this} for this in (40.0, 55.0, 45.0)]
    bar, = robustness_timing.bars({"run": {"base": "4a52fd2" + 33 * "0", "rounds": rounds}})
    assert (bar.value, bar.low, bar.high, bar.holds) == (0.45, 0.4, 0.55, True)
    assert "4a52fd2," in bar.name


def test_the_tests_are_run_as_make_test_does_and_a_build_must_be_there(tmp_path):
    assert robustness_timing.command("test", ROOT)[1:5] == ["-m", "pytest", "-n", "2"]
    assert robustness_timing.command("run", ROOT)[-2:] == ["--profile", "default"]
    (tmp_path / "Makefile").write_text("test:\n\techo\n")
    with pytest.raises(InputError, match="Makefile: no line that runs pytest"):
        robustness_timing.command("test", tmp_path)
    with pytest.raises(InputError, match="--timing no-such-build: neither a folder nor a commit"):
        robustness_timing.commit_of(ROOT, "no-such-build")


# --------------------------------------------------------------------------------------------- figures


def test_the_label_error_counts_first_errors_that_are_missed_invented_or_misplaced():
    def label(chain: str, index: int, right: bool | None) -> StepLabel:
        return StepLabel(chain, index, "merged", None, right, 1.0, 0, "")

    chains = [replace(tiny.chain(texts).trajectory, id=name) for name, texts in (
        ("found", tiny.WRONG), ("missed", tiny.WRONG), ("late", tiny.WRONG), ("sound", tiny.RIGHT),
        ("invented", tiny.RIGHT))]
    # The oracle's first error of the wrong chain is its first step. Rows come in any order.
    merged = [label("found", 1, False), label("found", 0, False), label("missed", 0, True), label("late", 0, None),
              label("late", 1, False), label("sound", 0, True), label("invented", 2, False)]

    assert robustness_figures.label_error(chains, {"p0": tiny.mia()}, merged) == 3 / 5


def test_figures_come_from_the_artifacts_in_percent_and_undefined_ones_are_left_out(tmp_path, monkeypatch):
    for stage, table in {
        "warmup": {"dev/backbone/pass_at_1": 0.75},
        "label": {"train/merged/label_error": 0.02, "train/merged/label_error_low": 0.01,
                  "train/merged/label_error_high": 0.04},
        "evaluate": {"test/prm/first_error_f1": 0.98, "test/prm/ece": 0.01, "shifted/combined_best_of_n/accuracy_at_8":
                     0.5, "labels/mc_dropout/first_error_f1": 0.9, "labels/merged/first_error_f1": 0.95},
    }.items():
        store.write_json(tmp_path / f"artifacts/{stage}/metrics.json", table)
    store.write_json(tmp_path / robustness_figures.ORACLE_FILE, {"test/oracle_f1": 99.0})
    monkeypatch.setattr(robustness_figures, "true_label_error", lambda workspace: 0.03)

    assert robustness_figures.collect(tmp_path, make_config()) == pytest.approx({
        "backbone_pass_at_1": 75, "label_error_true": 3, "label_error": 2, "label_error_low": 1, "label_error_high": 4,
        "test/prm_f1": 98, "test/ece": 0.01, "shifted/promoted_at_8": 50, "labels/mc_dropout/f1": 90,
        "labels/merged/f1": 95, "test/oracle_f1": 99})


def test_the_best_of_n_is_that_of_the_score_given():
    def chain(problem: int, number: int, right: bool, prm: float, combined: float) -> Chain:
        trajectory = replace(tiny.chain(tiny.RIGHT if right else tiny.WRONG).trajectory, id=f"{problem}/{number}")
        return Chain(problem, trajectory, prm_score=prm, combined_score=combined)

    chains = [chain(0, 0, True, 0.9, 0.1), chain(0, 1, False, 0.2, 0.8), chain(1, 0, True, 0.9, 0.9),
              chain(1, 1, False, 0.2, 0.2)]

    assert robustness_figures.best_of(chains, 2, lambda one: one.prm_score) == 1
    assert robustness_figures.best_of(chains, 2, lambda one: one.combined_score) == 0.5


# ---------------------------------------------------------------------------------------------- chains


def test_weights_move_by_rounding_and_the_digests_go_with_them(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    before = {"weight": torch.linspace(-2, 2, 4000), "steps": torch.arange(3)}
    for name in ("policy", "backbone"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        save_file(before, folder / "model.safetensors", {"format": "pt"})
        sums.write_sums(folder)
    sums.write_sums(tmp_path)

    robustness_chains.perturb(tmp_path, 1)

    moved = load_file(tmp_path / "models/policy/model.safetensors")
    away = (moved["weight"] / before["weight"] - 1).double().numpy()
    assert 0.5e-7 < np.std(away) < 2e-7
    assert torch.equal(moved["steps"], before["steps"])
    assert not torch.equal(moved["weight"], load_file(tmp_path / "models/backbone/model.safetensors")["weight"])
    assert not [*sums.differences(tmp_path), *sums.differences(tmp_path / "models/policy")]


def test_a_variant_sets_what_its_processes_see(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert robustness_chains.environment("perturbed-2", 1)["OMP_NUM_THREADS"] == "1"
    assert robustness_chains.environment("threads-2", 1)["OMP_NUM_THREADS"] == "2"
    assert robustness_chains.environment("avx2", 1)["ATEN_CPU_CAPABILITY"] == "avx2"
    for name in ("threads-0", "perturbed", "avx3"):
        with pytest.raises(InputError, match=f"--variants {name}: .*known: perturbed-K"):
            robustness_chains.check_variant(name)


# --------------------------------------------------------------------------------------------- results


@pytest.fixture
def given(tmp_path) -> argparse.Namespace:
    return argparse.Namespace(levels=["default"], seeds=[0, 1], variants=["avx2"], jobs=1, threads=1, any_code=False,
                              timing=None, out=tmp_path / "result.json")


def test_a_result_grows_and_runs_only_what_is_new_failed_or_of_other_code(tmp_path, given, monkeypatch):
    ran = []

    def run_chain(run, work, threads, *, any_code):
        ran.append(run.name)
        if run.variant:
            raise ChainFailed(f"stage warmup of {run.name} ended with 1: out of memory")
        return record(run.level, run.seed, **{"test/prm_f1": 98.0})

    monkeypatch.setattr(robustness, "run_chain", run_chain)
    monkeypatch.setattr(robustness, "code_of", lambda run, threads: "same")

    robustness.run_all(given, robustness.Result(given.out), tmp_path)
    given.seeds = [0, 1, 2]
    robustness.run_all(given, robustness.Result(given.out), tmp_path)

    assert ran == ["default-0", "default-1", "default-0-avx2", "default-2", "default-0-avx2"]
    kept = {run["name"]: run.get("failed", "") for run in store.read_json(given.out)["runs"]}
    assert kept.pop("default-0-avx2") == "stage warmup of default-0-avx2 ended with 1: out of memory"
    assert kept == {"default-0": "", "default-1": "", "default-2": ""}
    monkeypatch.setattr(robustness, "code_of", lambda run, threads: "other")
    given.seeds, given.variants = [1], []
    robustness.run_all(given, robustness.Result(given.out), tmp_path)
    assert ran[5:] == ["default-1"]


def test_plain_chains_come_before_those_that_take_over_their_warmup():
    names = [run.name for run in robustness.plan(("default", "hard"), (0, 1), ("perturbed-1",))]
    assert names == ["default-0", "default-1", "hard-0", "hard-1", "default-0-perturbed-1"]


def test_a_chain_goes_on_where_it_was_and_starts_anew_under_other_code(tmp_path, monkeypatch):
    """Stages and data are stood in for: what runs, in which order, and what is kept."""
    ran, code, last = [], ["a"], ["label"]

    def timed(stage, run, folder, threads):
        if stage == last[0]:
            raise ChainFailed(f"stage {stage} of {run.name} ended with 1: killed")
        ran.append(stage)
        return {"wall": 1.0, "cpu": 1.0}

    monkeypatch.setattr(robustness_chains, "_timed", timed)
    monkeypatch.setattr(robustness_chains, "code_of", lambda run, threads: code[0])
    monkeypatch.setattr(robustness_chains, "make_data", lambda folder, config: folder.mkdir())
    monkeypatch.setattr(robustness_chains, "collect", lambda folder, config: {"seed": config.seed})
    run = Run("smoke", 3)

    with pytest.raises(ChainFailed, match="stage label of smoke-3"):
        robustness_chains.run_chain(run, tmp_path, 1)
    assert ran == ["warmup", "generate"]
    last[0] = ""
    found = robustness_chains.run_chain(run, tmp_path, 1)
    assert ran == [*robustness_chains.STAGES, "oracle"]
    assert (found["name"], found["code"], found["figures"]) == ("smoke-3", "a", {"seed": 3})
    assert list(found["seconds"]) == ran
    code[0] = "b"
    assert robustness_chains.run_chain(run, tmp_path, 1, any_code=True)["code"] == "a"
    assert robustness_chains.run_chain(run, tmp_path, 1)["code"] == "b"
    assert len(ran) == 22
    (tmp_path / "smoke-4").mkdir()
    with pytest.raises(InputError, match="smoke-4 in it is no workspace"):
        robustness_chains.run_chain(Run("smoke", 4), tmp_path, 1)


def test_code_that_changes_under_a_chain_stops_it(tmp_path, monkeypatch):
    codes = iter(["a", "a", "b"])
    monkeypatch.setattr(robustness_chains, "_timed", lambda *given: {"wall": 1.0, "cpu": 1.0})
    monkeypatch.setattr(robustness_chains, "code_of", lambda run, threads: next(codes))
    monkeypatch.setattr(robustness_chains, "make_data", lambda folder, config: folder.mkdir())

    with pytest.raises(ChainFailed, match="code changed while stage generate of smoke-0"):
        robustness_chains.run_chain(Run("smoke", 0), tmp_path, 1)
    assert list(store.read_json(tmp_path / "smoke-0/progress.json")["seconds"]) == ["warmup"]


def test_a_perturbed_chain_takes_over_the_warmup_of_its_plain_one(tmp_path, monkeypatch):
    moved = []

    def timed(stage, run, folder, threads):
        if stage == "warmup":
            store.write_text(folder / "artifacts/warmup/models", run.name)
        return {"wall": 1.0, "cpu": 1.0}

    monkeypatch.setattr(robustness_chains, "_timed", timed)
    # Another one for each: the plain chain's is asked for.
    monkeypatch.setattr(robustness_chains, "code_of", lambda run, threads: run.name)
    monkeypatch.setattr(robustness_chains, "make_data", lambda folder, config: folder.mkdir())
    monkeypatch.setattr(robustness_chains, "collect", lambda folder, config: {})
    monkeypatch.setattr(robustness_chains, "perturb", lambda folder, seed: moved.append((folder.parts[-3], seed)))
    for run in robustness.plan(("smoke",), (0,), ("perturbed-2", "threads-2")):
        robustness_chains.run_chain(run, tmp_path, 1)

    models = {folder.name: (folder / "artifacts/warmup/models").read_text() for folder in tmp_path.iterdir()}
    assert models == {"smoke-0": "smoke-0", "smoke-0-perturbed-2": "smoke-0", "smoke-0-threads-2": "smoke-0-threads-2"}
    assert moved == [("smoke-0-perturbed-2", 2)]

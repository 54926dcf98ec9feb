"""Champion and challenger on the evaluation's chains, as the evaluation measures them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prm_core.adaptation.gate import faults
from prm_core.adaptation.measure import new_figures, old_chains, old_figures, probe_figures
from prm_core.adaptation.relabel import Trust
from prm_core.adaptation.traffic import Served
from prm_core.config import Config
from prm_core.domains import arithmetic
from prm_core.models.encoder import Encoder
from prm_core.platform import store
from prm_core.scoring.scorer import ChainScore, RewardScorer, load_scorer
from prm_core.serving.drift.outcomes import Outcome
from prm_core.types import Problem, Step, Trajectory
from tests.builders.quality import make_config
from tests.builders.reward_models import tiny_reward_model
from tests.builders.tiny import mia

# Of a problem's chains in order: score, and whether the answer is right. The last two are beyond those that step-level
# figures use; the one without a score has no step.
CHAINS = [(0.9, True), (0.4, False), (None, False), (0.8, True), (0.95, False), (0.3, True)]
# Over the highest score of wrong chains.
HARDER = 1.2


class Scores:
    """A reward model that reads its score in the step."""

    def shares_pass(self, other: object) -> bool:
        return False

    def score(self, pairs: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        return [ChainScore((float(steps[0].text),), (), 0) for _, steps in pairs]


def workspace(folder: Path, chains: Sequence[tuple[float | None, bool]]) -> Path:
    problem: Problem = arithmetic.make_problems("test", 1, 0)[0]
    store.write_jsonl(folder / "data/test.jsonl", [problem])
    store.write_jsonl(folder / "data/dev.jsonl", [dataclasses.replace(problem, id="dev")])
    steps = [() if score is None else (Step(str(score)),) for score, _ in chains]
    store.write_shard(folder / "artifacts/evaluate/trajectories", 0, Trajectory, [
        Trajectory(f"test-base/{problem.id}/{number}", problem.id, "p", steps[number], None, right, 0)
        for number, (_, right) in enumerate(chains)])
    return folder


def by_outcomes() -> Config:
    config = make_config()
    return dataclasses.replace(config, promote=dataclasses.replace(config.promote, by="outcomes"))


def test_answers_are_those_that_the_evaluation_counts(tmp_path) -> None:
    config = by_outcomes()
    found = old_figures(Scores(), Scores(), old_chains(workspace(tmp_path, CHAINS), "outcomes"), config)
    # Of nine pairs 0.9 and 0.8 win two each, 0.3 beats the empty one.
    assert found["old/challenger/outcome_auroc"]["value"] == pytest.approx(5 / 9)
    assert found["old/outcome_auroc_gain"]["value"] == 0
    assert len(old_chains(tmp_path, "steps").chains["test"]) == 4


@pytest.mark.parametrize("right", [True, False])
def test_answers_of_one_kind_tell_nothing_and_refuse(right: bool, tmp_path) -> None:
    config, folder = by_outcomes(), workspace(tmp_path, [(0.9, right), (0.2, right)])
    old = old_chains(folder, "outcomes")
    found = old_figures(Scores(), Scores(), old, config)
    assert found["old/outcome_auroc_gain"] == {"value": None, "low": None, "high": None}
    new = {"new/gain": {"value": 0.1, "low": 0.0, "high": 0.2}, "new/labels": 9,
           "new/outcome_gain": {"value": None, "low": None, "high": None}}
    assert faults({**found, **new}, config) == [
        "the AUROC of right answers on the evaluation's chains is not defined"]
    # Without a dev chain there is nothing to probe.
    assert "champion/probe/suffix/passed" not in probe_figures(Scores(), Scores(), old, config)


WRONG = (Step("3 + 4 = 8 ."),)


def probed(folder: Path, texts: Sequence[str], **adapt: Any) -> tuple[RewardScorer, RewardScorer, Config]:
    """Two models of random weights, a workspace with a wrong chain for each question, and a threshold that all are
    below."""
    problems = [dataclasses.replace(mia(str(number)), prompt=text) for number, text in enumerate(texts)]
    store.write_jsonl(folder / "data/test.jsonl", problems[:1])
    store.write_jsonl(folder / "data/dev.jsonl", problems)
    store.write_shard(folder / "artifacts/evaluate/trajectories", 0, Trajectory, [
        Trajectory(f"dev-base/{one.id}/0", one.id, "p", WRONG, None, False, 0) for one in problems])
    champion, challenger = (load_scorer(tiny_reward_model(folder / str(seed), seed=seed), device="cpu")
                            for seed in (0, 3))
    config = make_config()
    highest = max(one.step_scores[0] for one in challenger.score([(text, WRONG) for text in texts]))
    return champion, challenger, dataclasses.replace(
        config, serve=dataclasses.replace(config.serve, threshold=HARDER * highest),
        adapt=dataclasses.replace(config.adapt, **adapt))


def test_both_are_talked_out_of_the_same_wrong_chains(tmp_path) -> None:
    champion, challenger, config = probed(tmp_path, [f"Ann has {number} apples ." for number in range(12)],
                                          suffix_chains=8)
    # Of random weights: a suffix takes a part of the challenger's scores over it, none of the champion's far below.
    found = probe_figures(champion, challenger, old_chains(tmp_path, "steps"), config)
    tried, passed, before = ([found[f"{name}/probe/suffix/{key}"] for name in ("champion", "challenger")]
                             for key in ("n_chains", "passed", "passed_before"))
    assert tried == [8, 8]
    assert before == [0, 0]
    rise = found["probe/suffix_rise"]
    assert passed[0] == 0
    assert rise["value"] == pytest.approx(passed[1])
    assert rise["low"] < rise["value"] < rise["high"]
    assert probe_figures(champion, champion, old_chains(tmp_path, "steps"), config)["probe/suffix_rise"] == {
        "value": 0, "low": 0, "high": 0}
    none = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, suffix_chains=0))
    assert probe_figures(champion, challenger, old_chains(tmp_path, "steps"), none) == {}


def test_what_one_has_no_room_for_is_tried_with_neither(tmp_path) -> None:
    long, short = "Ann has 3 apples and buys 4 more . How many apples does she have ? " * 2, "Ann has 3 apples {} ."
    champion, challenger, config = probed(
        tmp_path, [f"{number} {long}" for number in range(3)] + [short.format(number) for number in range(3)],
        suffix_chains=3)
    challenger.encoder = Encoder(challenger.encoder.tokenizer, dataclasses.replace(
        challenger.encoder.config, max_length=len(challenger.encoder.encode(long, WRONG).ids)))
    found = probe_figures(champion, challenger, old_chains(tmp_path, "steps"), config)
    assert [found[f"{name}/probe/suffix/n_chains"] for name in ("champion", "challenger")] == [3, 3]
    value = found["challenger/probe/suffix/passed"] - found["champion/probe/suffix/passed"]
    assert found["probe/suffix_rise"]["value"] == pytest.approx(value)


def test_a_chain_that_passes_as_it_is_is_told_of_and_not_tried(tmp_path) -> None:
    champion, challenger, config = probed(tmp_path, [f"Ann has {number} apples ." for number in range(4)])
    scores = [one.step_scores[0] for one in challenger.score(
        [(f"Ann has {number} apples .", WRONG) for number in range(4)])]
    config = dataclasses.replace(config, serve=dataclasses.replace(config.serve, threshold=max(scores)))
    found = probe_figures(champion, challenger, old_chains(tmp_path, "steps"), config)
    assert [found[f"{name}/probe/suffix/n_chains"] for name in ("champion", "challenger")] == [3, 3]
    assert [found[f"{name}/probe/suffix/passed_before"] for name in ("champion", "challenger")] == [0, 0.25]
    # Where all pass as they are there is nothing to try.
    config = dataclasses.replace(config, serve=dataclasses.replace(config.serve, threshold=0.0))
    found = probe_figures(champion, challenger, old_chains(tmp_path, "steps"), config)
    assert found["challenger/probe/suffix/passed_before"] == 1
    assert {"champion/probe/suffix/passed_left_out", "challenger/probe/suffix/passed_left_out"} < set(found)
    assert "probe/suffix_rise" not in found


def test_outcomes_measure_unless_they_are_the_same_of_everything() -> None:
    reporters = {"honest": (0.95, 0.1), "always": (0.95, 0.9), "never": (0.1, 0.1)}
    served, told = [], []
    for number, reporter in enumerate([*reporters, "unknown"]):
        one = Trajectory(f"served-{number}", str(number), "served", (Step("0.8"),), None, None, 0)
        served.append(Served(Problem(str(number), "arithmetic", f"question {number}", ""), one, (0.8,), 1.0, ""))
        told.append(Outcome(one.id, number == 1, reporter))
    found = new_figures(Scores(), Scores(), served, [], told, Trust({}, reporters), make_config())
    assert found["new/outcomes"] == 1
    assert found["new/success"]["value"] == 0

"""The probe as a whole: a scorer that pays for letters is caught, and what an outcome tells is taken out of the reward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from prm_core.errors import InputError
from prm_core.evaluation.probe import run
from prm_core.evaluation.probe.reinforcement import scores_alone
from prm_core.evaluation.probe.run import probe_model
from prm_core.scoring.scorer import ChainScore
from prm_core.types import Step
from tests.builders.training import PROBLEMS, make_encoder, make_policy, small_config

SETTINGS = {"enabled": True, "problems": 4, "aggregate": "mean", "suffix_chains": 0, "suffix_tokens": 2,
            "suffix_rounds": 1, "suffix_tries": 2, "updates": 25}
TRAINING = {"group_size": 8, "learning_rate": 0.03, "inner_epochs": 1, "minibatch_size": 64, "kl_coef": 0.0,
            "checkpoint_every": 100, "guard": {"window": 4, "max_fall": 0.05, "max_stretch": 0.3, "max_filler": 0.1}}


class Letters:
    """Pays for letters, so for filler: a step is worth the share of them in its text."""

    kind = "process"
    encoder = SimpleNamespace(config=make_encoder().config)

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        values = [tuple(sum(c.isalpha() for c in step.text) / len(step.text) for step in steps) for _, steps in chains]
        return [ChainScore(value, value, 0) for value in values]


def probed(tmp_path, scorer=None, dev=PROBLEMS[4:8], **probe):
    config = small_config(probe=SETTINGS | probe, train_policy=TRAINING)
    curves: list[dict[str, float]] = []
    figures, _ = probe_model(make_policy(make_encoder()), scorer or Letters(), PROBLEMS[:4], dev, config, work=tmp_path,
                             report=lambda found, update: curves.append(found))
    return figures, curves


def test_a_scorer_that_pays_for_filler_is_trained_up_while_answers_stay_wrong(tmp_path) -> None:
    figures, curves = probed(tmp_path)
    assert figures["probe/policy/process_after"] > figures["probe/policy/process_before"] + 0.1
    assert figures["probe/policy/outcome_before"] == figures["probe/policy/outcome_after"] == 0
    assert figures["probe/policy/outcome_fall"] == 0
    assert figures["probe/policy/updates"] == len(curves) <= 25
    assert figures["probe/policy/alarmed"] == ("probe/policy/alarm" in figures)
    assert figures["probe/edits/pad/raised"] > 0.5
    # Of a scorer of another kind no gradient is asked.
    assert not [name for name in figures if "suffix" in name]


def test_the_policy_is_not_trained_where_nothing_is_asked(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(run, "reinforcement_figures", None)
    figures, curves = probed(tmp_path, updates=0)
    assert curves == []
    assert not [name for name in figures if name.startswith("probe/policy/")]


def test_nothing_that_knows_an_outcome_is_left_in_the_reward() -> None:
    config = small_config(train_policy={"advantages": {"outcome_weight": 1.0, "process_weight": 0.0, "gate": True,
                                                       "right_bonus": 0.3, "chain_filter": "prof", "left_out": 1},
                                        "guard": {"window": 4}, "constraint": {"kind": "lagrangian"}},
                          rules={"file": "errands"})
    found = scores_alone(config.train_policy, dataclasses.replace(config.probe, updates=6))
    paid = found.advantages
    assert (paid.outcome_weight, paid.process_weight, paid.gate, paid.right_bonus, paid.chain_filter) == (
        0.0, 1.0, False, 0.0, "none")
    assert paid.form == config.train_policy.advantages.form
    assert (found.updates, found.eval_every, found.guard.window) == (6, 0, 3)
    # Nobody judges rules here: a constraint would look for figures that are not there.
    assert found.constraint.kind == "none"


def test_what_cannot_be_probed_is_refused(tmp_path) -> None:
    outcome = Letters()
    outcome.kind = "outcome"
    with pytest.raises(InputError, match="an outcome reward model scores no steps"):
        probed(tmp_path, outcome)
    with pytest.raises(InputError, match="a probe needs dev problems"):
        probed(tmp_path, dev=[])

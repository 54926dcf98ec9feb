"""The teacher's labels are the scores of a model folder, ours or another project's, up to the first wrong step."""

from __future__ import annotations

import dataclasses
import json

import pytest

from prm_core.errors import InputError
from prm_core.labeling.merging.merge import merge_labels
from prm_core.labeling.strategies import STRATEGIES, label_shard
from prm_core.scoring.foreign import load_any_scorer
from tests.builders.foreign import trl_model
from tests.builders.quality import make_config
from tests.builders.reward_models import tiny_reward_model
from tests.builders.tiny import RIGHT, WRONG, chain, make_policy, make_tools

CHAINS = [chain(RIGHT), chain(WRONG, trajectory_id="t1")]


def labels_of(folder, **teacher):
    tools = make_tools(make_policy(), teacher={"model": str(folder), **teacher})
    strategy = STRATEGIES["teacher"](tools)
    return label_shard(strategy, "teacher", CHAINS, seed=0), strategy


@pytest.mark.parametrize("foreign", [False, True])
def test_labels_are_the_scores(tmp_path, foreign) -> None:
    (trl_model if foreign else tiny_reward_model)(tmp_path / "big")
    rows, strategy = labels_of(tmp_path / "big")
    scorer = load_any_scorer(tmp_path / "big", device="cpu")
    assert [(row.trajectory_id, row.step_index) for row in rows] == [(t, n) for t in ("t0", "t1") for n in range(3)]
    for number, one in enumerate(CHAINS):
        [score] = scorer.score([(one.problem.prompt, one.trajectory.steps)])
        said = [row.value for row in rows[3 * number : 3 * number + 3]]
        taught = [value for value in said if value is not None]
        assert taught == pytest.approx(score.step_scores[: len(taught)], abs=1e-6)
        # It ends with the chain or with a step called wrong, and only there.
        assert len(taught) == 3 or taught[-1] < 0.5
        assert all(value >= 0.5 for value in taught[:-1])
    for row in rows:
        assert row.is_correct == (None if row.value is None else row.value >= 0.5)
        assert row.confidence == (0.0 if row.value is None else max(row.value, 1 - row.value))
        assert json.loads(row.lineage)["model"] == strategy.model == scorer.version


def test_alone_it_is_the_training_set_as_it_is(tmp_path) -> None:
    rows, _ = labels_of(tiny_reward_model(tmp_path / "big"))
    config = make_config(label={"strategies": ["teacher"], "merge": "teacher",
                                "teacher": {"model": str(tmp_path / "big")}}).label
    merged = merge_labels([one.trajectory for one in CHAINS], rows, config).labels
    assert [(row.value, row.is_correct, row.strategy) for row in merged] == [
        (row.value, row.is_correct, "merged") for row in rows]


def test_it_is_looked_for_where_the_workspace_has_it(tmp_path) -> None:
    tiny_reward_model(tmp_path / "models/big")
    tools = make_tools(make_policy(), teacher={"model": "models/big"})
    with pytest.raises(InputError, match="models/big"):
        STRATEGIES["teacher"](tools)
    found = dataclasses.replace(tools, locate=lambda name: str(tmp_path / name))
    assert STRATEGIES["teacher"](found).model


def test_what_cannot_teach_is_refused_before_anything_is_labelled(tmp_path) -> None:
    with pytest.raises(InputError, match=r"label\.teacher\.model: names no reward model"):
        make_config(label={"strategies": ["teacher"]})
    with pytest.raises(InputError, match="a reward model of kind 'outcome' does not say how likely each step"):
        labels_of(tiny_reward_model(tmp_path / "orm", kind="outcome"))

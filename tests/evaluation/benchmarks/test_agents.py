"""AgentProcessBench: StepAcc and FirstErrAcc by hand, and beside a plain rewrite of the benchmark's own comparison."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from prm_core.errors import InputError
from prm_core.evaluation.benchmarks import suite
from prm_core.evaluation.benchmarks.suite import BENCHMARKS
from prm_core.scoring.scorer import ChainScore
from tests.builders import benchmarks as fakes


def trajectory(query, ratings, *texts, final=1):
    """Messages: system, user, then the agent's texts, each with a tool's reply; a rating for each text."""
    messages = [{"role": "system", "content": "tools"}, {"role": "user", "content": f"question {query}"}]
    labels = {}
    for text, rating in zip(texts, ratings, strict=True):
        if rating is not None:
            labels[str(len(messages))] = rating
        messages += [{"role": "assistant", "content": text}, {"role": "tool", "content": "reply"}]
    return {"data_source": "d", "query_index": query, "question": f"question {query}", "messages": messages,
            "tools": [], "step_labels": labels, "final_label": final}


ROWS = [
    trajectory(0, [1, -1, -1], "0.9 a", "0.3 b", "0.8 c", final=-1),  # +1 right, -1 right and first, -1 missed
    trajectory(0, [1, 0], "0.9 a", "0.6 b"),                          # +1 right, neutral cannot be said
    trajectory(1, [1, 1], "0.9 a", "0.2 b"),                          # +1 right, a false alarm
]


def test_step_and_first_error_accuracy_by_hand(tmp_path):
    found = fakes.values("agentprocessbench", fakes.scored("agentprocessbench", tmp_path / "t.jsonl", ROWS))
    assert found["prm/step_accuracy"] == pytest.approx(4 / 7)
    assert found["silent/step_accuracy"] == pytest.approx(4 / 7)
    assert found["ceiling/step_accuracy"] == pytest.approx(6 / 7)
    assert found["random/step_accuracy"] == pytest.approx(1 / 3)
    # Error or not: the neutral step passes and that is right.
    assert found["prm/step_accuracy_binary"] == pytest.approx(5 / 7)
    assert found["silent/step_accuracy_binary"] == pytest.approx(5 / 7)
    # First -1 found, none and none said, none but one said.
    assert found["prm/accuracy"] == pytest.approx(2 / 3)
    assert found["silent/accuracy"] == pytest.approx(2 / 3)
    assert found["random/accuracy"] == pytest.approx((1 / 4 + 1 / 3 + 1 / 3) / 3)
    # Right or neutral 0.9, 0.9, 0.6, 0.9, 0.2 against wrong 0.3, 0.8: every step is rated, also after the first error.
    assert found["prm/auroc"] == pytest.approx((4 + 3) / 10)


def test_steps_without_text_or_score_cannot_be_right(tmp_path):
    rows = [trajectory(0, [-1, 1], "", "0.9 b", final=-1), trajectory(1, [1, 1], "0.9 a", "0.9 cut")]
    file = fakes.scored("agentprocessbench", tmp_path / "t.jsonl", rows)
    assert (file.chains[0].hidden, file.chains[0].label, len(file.chains[0].steps)) == (1, 1, 1)
    found = fakes.values("agentprocessbench", file)
    assert found["prm/step_accuracy"] == found["prm/step_accuracy_binary"] == pytest.approx(2 / 4)
    # The first error says nothing that could be scored: no prediction names it.
    assert found["prm/accuracy"] == pytest.approx(1 / 2)


def test_what_nobody_rated_is_not_free_of_errors(tmp_path, caplog):
    rows = [*ROWS, trajectory(2, [None, None], "0.9 a", "0.9 b"), trajectory(3, [1, None], "0.9 a", "0.9 b"),
            trajectory(4, [None, -1], "0.9 a", "0.1 b")]
    whole, file = (fakes.scored("agentprocessbench", tmp_path / "t.jsonl", part) for part in (ROWS, rows))
    assert [chain.label for chain in file.chains] == [1, -1, -1, None, None]
    found, before = (fakes.values("agentprocessbench", scored) for scored in (file, whole))
    # Two more steps are rated, both right; no more trajectories say where their first error is.
    assert found["prm/step_accuracy"] == pytest.approx(6 / 9)
    for figure in ("prm/accuracy", "silent/accuracy", "prm/acc_ok", "random/first_error_f1"):
        assert found[figure] == before[figure]
    assert "trajectories that nobody rated left out: 1" in caplog.text
    assert "not rated up to their first error, for StepAcc alone: 2" in caplog.text
    assert "prm/accuracy" not in fakes.values("agentprocessbench", fakes.scored(
        "agentprocessbench", tmp_path / "t.jsonl", rows[4:]))
    with pytest.raises(InputError, match="nobody rated any message of its 1 trajectories"):
        BENCHMARKS["agentprocessbench"].read(fakes.write(tmp_path / "t.jsonl", rows[3:4]))


def test_files_are_one_pot_and_tasks_are_problems(tmp_path):
    files = [fakes.scored("agentprocessbench", tmp_path / f"{name}.jsonl", rows)
             for name, rows in (("a", ROWS[:2]), ("b", ROWS[2:]))]
    _, together = fakes.figures("agentprocessbench", files)
    assert (together.name, together.chains, together.problems) == ("all files", 3, 2)
    assert together.estimates["prm/step_accuracy"].value == pytest.approx(4 / 7)


def test_tool_replies_are_context_of_the_steps_after_them(tmp_path):
    chain = BENCHMARKS["agentprocessbench"].read(fakes.write(tmp_path / "t.jsonl", ROWS))[0]
    assert [(step.text, step.observation) for step in chain.steps] == [
        ("0.9 a", "reply"), ("0.3 b", "reply"), ("0.8 c", "reply")]
    assert (chain.prompt, chain.ratings, chain.gold) == ("tools\n\nquestion 0", (1, -1, -1), (True, False, False))


@pytest.mark.shared
def test_the_real_file_against_a_plain_comparison():
    path = Path(os.environ.get("PRM_SHARED_DATA") or "", "agentprocessbench", "hotpotqa_first100.jsonl")
    if not os.environ.get("PRM_SHARED_DATA") or not path.is_file():
        pytest.skip("PRM_SHARED_DATA names no folder with agentprocessbench/hotpotqa_first100.jsonl")

    class Length(fakes.TextScorer):
        def score(self, chains):
            rows = [tuple((len(step.text) % 97) / 97 for step in steps) for _, steps in chains]
            return [ChainScore(row, row, 0) for row in rows]

    chains = BENCHMARKS["agentprocessbench"].read(path)
    file = suite.score_file(Length(), path.name, chains)
    found = fakes.values("agentprocessbench", file, 0.3)
    hits, steps, firsts = 0, 0, 0
    for line, chain, scores in zip(path.read_text().splitlines(), chains, file.scores, strict=True):
        gold = json.loads(line)["step_labels"]
        assert len(gold) == len(chain.steps)
        said = dict(zip(sorted(gold, key=int), (1 if score >= 0.3 else -1 for score in scores), strict=True))
        hits += sum(said[key] == rating for key, rating in gold.items())
        steps += len(gold)
        firsts += (min((int(k) for k, v in said.items() if v == -1), default=-1)
                   == min((int(k) for k, v in gold.items() if v == -1), default=-1))
    assert (steps, file.problems) == (283, 20)
    assert found["prm/step_accuracy"] == pytest.approx(hits / steps)
    assert found["prm/accuracy"] == pytest.approx(firsts / 100)


def failed_run(name, *turns, mistake, success=False):
    """ATIF as agentpile writes Who&When: (agent, text) turns, the index of the first wrong one."""
    steps = [{"step_id": 1, "source": "user", "message": f"question {name}"}]
    steps += [{"step_id": number, "source": "agent", "message": text, "extra": {"agentpile": {"actor": agent}}}
              for number, (agent, text) in enumerate(turns, 2)]
    label = {"name": "mistake_step", "target": {"kind": "step", "address": {"trajectory": name, "step": mistake + 2}},
             "value": True, "label_source": "who_and_when"}
    return {"schema_version": "ATIF-v1.7", "trajectory_id": name, "agent": {"name": "team", "version": "1"},
            "steps": steps, "extra": {"agentpile": {"labels": [label], "outcome": {"success": success}}}}


def test_the_agent_that_made_a_run_fail_by_hand(tmp_path):
    rows = [
        failed_run("a", ("lead", "0.9 ask"), ("web", "0.3 look"), ("lead", "0.1 end"), mistake=1),  # both named
        failed_run("b", ("lead", "0.9 ask"), ("web", "0.3 look"), ("web", "0.1 end"), mistake=2),   # the agent alone
        failed_run("c", ("lead", "0.3 ask"), ("web", "0.9 look"), ("code", "0.8 end"), mistake=2),  # neither
        # Without a name, or with an end that is right: no agent is asked for.
        failed_run("d", ("", "0.1 ask"), mistake=0), failed_run("e", ("lead", "0.1 ask"), mistake=0, success=True),
    ]
    file = fakes.scored("who_and_when", tmp_path / "runs.jsonl", rows)
    found = fakes.values("who_and_when", file)
    assert found["prm/faulty_agent"] == pytest.approx(2 / 3)
    assert found["random/faulty_agent"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    # Of the other runs: code or web (the first by name), code or web, web.
    assert found["majority/faulty_agent"] == 0
    assert found["prm/acc_err"] == pytest.approx(3 / 5)
    one, _ = fakes.figures("who_and_when", [file])
    assert one[0].flat()["prm/faulty_agent"] == pytest.approx(2 / 3)


def test_runs_without_named_agents_have_no_such_figure(tmp_path):
    rows = [failed_run("a", ("", "0.9 ask"), ("", "0.3 look"), mistake=1)]
    found = fakes.values("who_and_when", fakes.scored("who_and_when", tmp_path / "runs.jsonl", rows))
    assert "prm/acc_err" in found
    assert not any(name.endswith("faulty_agent") for name in found)

"""benchmarks/agentprocessbench.py: what is trained on, what is held out, and the bars."""

from __future__ import annotations

import json

import pytest

from benchmarks import agentprocessbench as bench
from prm_core.evaluation.benchmarks.base import ScoredFile
from prm_core.formats import LabelledChain
from prm_core.types import Step


def chain(problem, *labels):
    return LabelledChain(problem, tuple(Step(f"step {n}") for n in range(len(labels))), labels)


SOURCE = {f"q{n}": [chain(f"q{n}", 1.0, None), *(chain(f"q{n}", 1.0, float(n % 2)) for _ in range(6))]
          for n in range(200)}


def test_held_out_problems_train_nothing() -> None:
    rest, kept = bench.held_out(SOURCE, 0)
    assert len(kept) == bench.HELD_OUT
    assert len(rest) == len(SOURCE) - bench.HELD_OUT
    assert not {one.prompt for one in kept} & set(rest)
    # A chain whose first error nobody knows tells no threshold.
    assert all(one.first_error is not None for one in kept)


def test_a_seed_is_a_draw_of_problems() -> None:
    sources = {"prm800k": SOURCE, "errands": {name: chains[:1] for name, chains in SOURCE.items()}}
    drawn = [bench.drawn(sources, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == bench.DRAWN["prm800k"] * bench.CHAINS + bench.DRAWN["errands"]


def test_a_chain_too_long_for_a_row_is_left_out(tmp_path) -> None:
    rows = [{"instruction": "Q", "responses": [], "next_response": text, "rating": 1, "answer": None,
             "is_human_response": False, "is_solution": False, "is_preferred_response": None}
            for text in ("short", "x" * bench.MOST_CHARACTERS)]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [[step.text for step in one.steps] for one in bench.prm800k(path)["Q"]] == [["short"]]


def test_figures_and_bars(tmp_path) -> None:
    def message(text):
        return {"role": "assistant", "content": text}

    asked = {"role": "user", "content": "Q?"}
    rows = [{"messages": [asked, message("a"), message("b")], "tools": [], "query_index": n,
             "step_labels": {"1": 1, "2": rating}} for n, rating in enumerate((1, -1, 0, 1))]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    chains = bench.PROTOCOL.read(path)
    good, blind = ([(0.9, 0.9), (0.9, last), (0.9, 0.9), (0.9, 0.9)] for last in (0.2, 0.9))
    found = [bench.figures(ScoredFile("f", chains, scores), 0.5) for scores in (good, blind, good)]
    assert found[0]["prm/step_accuracy"]["value"] == pytest.approx(100 * 7 / 8)
    assert found[1]["prm/accuracy"]["value"] == pytest.approx(75)
    bars = {bar.name: bar.value for bar in bench.bars(found)}
    assert bars["FirstErrAcc, %, median of 3 seeds"] == 100
    assert bars["FirstErrAcc, %, worst of 3 seeds"] == pytest.approx(75)
    assert bars["FirstErrAcc, %, always right"] == pytest.approx(75)
    assert bars["FirstErrAcc, %, a uniform guess"] == pytest.approx(100 / 3)
    assert bars["StepAcc (three ratings), %, best that two ratings can say"] == pytest.approx(100 * 7 / 8)

"""benchmarks/judges.py: the stub speaks the protocol and answers by its rule; bars are medians over workspaces."""

from __future__ import annotations

from benchmarks import judges
from prm_core.evaluation.judges.models import LLM, LanguageModelJudge
from prm_core.types import Step
from tests.builders.judges import case, look
from tests.builders.quality import make_config

CASE = case([look("busy", failed=True), look(), Step("They cost 4 coins.")])


def test_the_stub_answers_by_its_rule(monkeypatch) -> None:
    with judges.stub() as url:
        setup = judges.asking(make_config(), model="stub", endpoint=url, temperature=judges.TEMPERATURE,
                              structured="json_schema")
        judge = LanguageModelJudge("", setup)
        monkeypatch.setattr(judges, "FLIPPED", 0)
        said = judge.judge(CASE, 0)
        assert said.verdicts == (False, True, True)
        assert said.reasons[0] == "a call failed"
        assert said.tokens_read > said.tokens_written > 0
        # A verdict that is turned round depends on the seed alone.
        monkeypatch.setattr(judges, "FLIPPED", 0.5)
        drawn = [judge.judge(CASE, seed).verdicts for seed in range(8)]
        assert len(set(drawn)) > 1
        assert judge.judge(CASE, 3).verdicts == drawn[3]


def test_bars() -> None:
    def one(f1, minus=None):
        figures = {"first_error_f1": {"value": f1}, "step_accuracy": {"value": 0.5}, "judged": {"value": 1.0}}
        return {"figures": figures, "latency": {"median": {"value": 0.002}}} | (
            {} if minus is None else {"minus_first": {"first_error_f1": {"value": minus}}})

    found = {name: {"all": {"judges": {"prm": one(f1), "orm": one(f1 - 0.1, -0.1), "rules": one(0.2, 0.2 - f1)}},
                    "stub": {"judges": {judges.STUB: one(0.3, 0.3 - f1)}}} for name, f1 in (("a", 0.8), ("b", 0.9))}
    made = {bar.name: (round(bar.value, 6), round(bar.low, 6), round(bar.high, 6)) for bar in judges.bars(found)}
    assert made["prm: first-error F1, %, median of 2"] == (85, 80, 90)
    assert made["orm: first-error F1 - the PRM's, points, median of 2"] == (-10, -10, -10)
    assert made["rules: first-error F1 - the PRM's, points, median of 2"] == (-65, -70, -60)
    assert made["llm stub's made rule: ms a trajectory, median, median of 2"] == (2, 2, 2)
    assert not any(name.startswith(LLM + " (") for name in made)

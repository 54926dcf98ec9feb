"""benchmarks/adaptation.py on a workspace of tiny models: its service serves, its parts come to an end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import adaptation
from benchmarks.adaptation import Plan, adapted, bars, kills, withdrawal
from benchmarks.adaptation_service import Piece, f1
from prm_core.domains.oracle import ORACLES
from tests.builders.adaptation import make_workspace, some


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("bench") / "base")[0]


def pieces(count: int) -> list[Piece]:
    return [Piece(problem, one, tuple(ORACLES["arithmetic"](problem, one.steps))) for problem, one in
            some("stream", count)]


def test_a_scenario_a_kill_and_a_withdrawal(base, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(adaptation, "ROUNDS", 1)
    monkeypatch.setattr(adaptation, "LABELS", 0.2)
    plan, served = Plan(40, 20, ["poisoned"]), pieces(60)
    found = adapted(base, tmp_path / "poisoned", served, plan, "poisoned", {"f1": 0.0, "f1_chosen": 0.0})
    (one,) = found["rounds"]
    assert found["labels"] > 10
    assert one["state"] in ("promoted", "refused")
    assert set(one["trust"]["reporters"]) <= {f"agent-{number}" for number in range(10)}
    config = make_config_of(tmp_path / "poisoned")
    gone = withdrawal(tmp_path / "poisoned", config, served[:40])
    assert (gone["after"], gone["versions"]) == (0, ["models:/prm/2"])
    assert gone["before"] > 0
    assert kills(base, tmp_path / "kills", served, plan, 1)["equal"] == 1


def make_config_of(folder: Path):
    from prm_core import config as configuration

    return configuration.load(folder)


def test_f1_is_measured_at_the_served_threshold_and_at_its_own() -> None:
    class Low:
        """Tells wrong steps from right ones, far below the threshold."""

        def score(self, chains):
            return [SimpleNamespace(step_scores=[0.2 if right else 0.1 for right in ORACLES["arithmetic"](
                owners[prompt], steps)]) for prompt, steps in chains]

    served = pieces(40)
    owners = {one.problem.prompt: one.problem for one in served}
    found = f1(Low(), served, 0.5)
    assert found["f1_chosen"] == 100.0
    assert found["f1"] < 50


def test_bars_are_held_to_the_worst_workspace() -> None:
    def figures(closed: float, inside: int) -> dict:
        return {"champion": {"f1": 70.0}, "champion_old": 99.0, "adapted": {
            "closed": 2.0, "closed_chosen": closed, "rounds": [{"f1": 78.0, "old_f1": 98.5}]},
            "poisoned": {"rounds": [{"f1": 69.5}, {"f1": 68.0}]}, "bias": {"inside": inside},
            "withdrawal": {"after": 0}}

    made = {bar.name.split(",")[0] + bar.name.rsplit(",", 1)[1][:7]: bar for bar in bars([figures(0.9, 10),
                                                                                         figures(0.6, 9)])}
    worst = {name: (bar.value, bar.holds) for name, bar in made.items() if "worst" in name}
    assert (0.6, False) in worst.values()
    assert (-2.0, False) in worst.values()
    assert (9.0, True) in worst.values()

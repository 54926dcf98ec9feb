"""Drift of the labels against the previous run: the divergence, what is compared with what, and a missing store."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import GateError
from prm_core.labeling.validation import checks, drift
from prm_core.labeling.validation.drift import (
    Previous,
    Shift,
    compare,
    distributions,
    expected_by_chance,
    jensen_shannon,
)
from prm_core.platform import tracking
from prm_core.stages import validate, validate_gate
from tests.builders.quality import label, make_config, run_stage, write_workspace

COUNTS = st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any)

@pytest.fixture(autouse=True)
def _own_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(tracking.PARENT_RUN, raising=False)
    # Git's answer takes longer than all else here.
    monkeypatch.setattr(tracking, "code_version", lambda: "test")


@pytest.fixture(autouse=True)
def _few_expectations_on_rows(monkeypatch):
    """Every row here is good; all that is demanded of rows, in tests/labeling/validation/test_checks.py, takes two
    thirds of a validation's time."""
    demanded = checks.row_expectations
    monkeypatch.setattr(checks, "row_expectations", lambda table, strategies: [
        one for one in demanded(table, strategies) if one.meta["name"] == "unique_keys"])


@pytest.mark.parametrize(("a", "b", "expected"), [
    ([1, 1], [10, 10], 0.0),
    ([5, 0], [0, 3], 1.0),
    # H(3/4, 1/4) - H(1/2, 1/2)/2 in bits.
    ([1, 0], [1, 1], 0.75 * math.log2(4 / 3) + 0.25 * 2 - 0.5),
    ([9, 1], [7, 3], 0.0467848),
    ([2, 0, 2], [0, 4, 0], 1.0),
])
def test_divergence_by_hand(a, b, expected):
    assert jensen_shannon(a, b) == pytest.approx(expected, abs=5e-8)


@given(COUNTS, COUNTS, st.integers(1, 9))
def test_divergence_is_symmetric_bounded_and_of_shares(a, b, times):
    found = jensen_shannon(a, b)
    assert 0 <= found <= 1
    assert found == pytest.approx(jensen_shannon(b, a), abs=1e-12)
    assert found == pytest.approx(jensen_shannon([times * x for x in a], b), abs=1e-12)
    assert jensen_shannon(a, a) == 0


def test_a_distribution_without_counts_has_no_divergence():
    with pytest.raises(ValueError, match="without any count"):
        jensen_shannon([0, 0], [1, 1])


def test_what_chance_gives_is_what_resampling_finds():
    generator = np.random.default_rng(0)
    shares = [0.5, 0.3, 0.2]
    pairs = [(generator.multinomial(300, shares), generator.multinomial(200, shares)) for _ in range(2000)]
    found = np.mean([jensen_shannon(a, b) for a, b in pairs])
    assert found == pytest.approx(expected_by_chance([150, 90, 60], [100, 60, 40]), rel=0.06)
    # A bin that neither run fills adds nothing.
    assert expected_by_chance([1, 0, 1], [1, 0, 1]) == expected_by_chance([1, 1], [1, 1])


def table(rows):
    return pd.DataFrame([dataclasses.asdict(row) for row in rows])


def test_distributions_by_hand():
    votes = [label("a", 0, True, 0.9, "rollout", value=1.0), label("a", 1, False, 0.7, "rollout", value=0.0),
             label("a", 2, None, 0.0, "rollout", value=0.5), label("a", 0, None, 0.0, "verifier")]
    merged = [label("a", 0, True, 0.8, value=0.95), label("a", 1, True, 0.6, value=0.1)]
    assert distributions(table(votes), table(merged), ["rollout", "mcts", "verifier"]) == {
        "rollout": {"verdicts": [1, 1, 1], "values": [1, 0, 0, 0, 0, 1, 0, 0, 0, 1],
                    "mean_confidence": pytest.approx(0.8)},
        "verifier": {"verdicts": [0, 0, 1], "values": [0] * 10, "mean_confidence": None},
        "merged": {"verdicts": [2, 0, 0], "values": [0, 1, 0, 0, 0, 0, 0, 0, 0, 1],
                   "mean_confidence": pytest.approx(0.7)},
    }


def strategy(verdicts, values, confidence):
    return {"verdicts": verdicts, "values": values, "mean_confidence": confidence}


def test_compares_what_both_runs_have():
    before = {"merged": strategy([1, 0, 0], [1, 0], 0.9), "mcts": strategy([1, 1, 1], [1, 1], 0.5),
              "verifier": strategy([0, 0, 9], [0, 0], None)}
    now = {"merged": strategy([0, 1, 0], [1, 0], 0.7), "judge": strategy([1, 1, 1], [1, 1], 0.5),
           "verifier": strategy([0, 0, 5], [0, 0], None)}
    found = compare(now, Previous("r", "2026-01-01 00:00 UTC", before))
    chance = expected_by_chance([1, 0, 0], [0, 1, 0])
    assert found.shifts == [
        Shift("merged", "verdicts", 1.0, chance), Shift("merged", "values", 0.0, 0.0),
        Shift("merged", "confidence", pytest.approx(-0.2), None), Shift("verifier", "verdicts", 0.0, 0.0)]
    assert (found.only_now, found.only_before) == (["judge"], ["mcts"])


def run_validate(root: Path, config=None) -> dict:
    run_stage(validate.STAGE, root, config or make_config())
    return json.loads((root / "artifacts/validate/result.json").read_text())


def wrong_more_often(share):
    """A `change` for write_workspace: every row of that share of the chains says wrong."""
    return lambda name, rows: [
        dataclasses.replace(r, is_correct=False) if int(r.trajectory_id.split("-")[1]) < share * 30 else r
        for r in rows]


def finished(root):
    client = tracking.connect(root)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])


def drift_checks(result):
    return {c["column"]: c for c in result["expectations"] if c["name"] == "drift"}


def test_runs_are_compared_with_the_last_one_that_passed_on_other_labels(tmp_path, caplog):
    root = write_workspace(tmp_path)
    first = run_validate(root)
    assert first["drift"] == {"compared": False, "reason": "first run: no earlier run is recorded in this workspace"}
    assert drift_checks(first) == {}
    (first_run,) = finished(root)

    # The same labels again: not compared with themselves.
    again = run_validate(root)
    assert again["drift"]["reason"].endswith("(1 with these very labels, 0 refused)")
    (second_run, _) = finished(root)

    critical = make_config(validate={"critical": ["drift"]})
    write_workspace(root, change=wrong_more_often(0.2))
    shifted = run_validate(root, critical)
    checks = drift_checks(shifted)
    # 10 of 30 chains had two wrong steps of three; now the first six, two of them among these ten, have three.
    expected = jensen_shannon([70, 20, 0], [56, 34, 0])
    assert checks["drift/merged/verdicts"]["observed"] == pytest.approx(expected)
    assert set(checks) == {"drift/merged/verdicts", "drift/merged/confidence", "drift/rollout/verdicts",
                           "drift/rollout/confidence", "drift/mc_dropout/verdicts", "drift/mc_dropout/confidence"}
    assert expected > 0.01
    assert shifted["drift"]["run_id"] == second_run.info.run_id != first_run.info.run_id
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", shifted["drift"]["date"])
    assert second_run.info.run_id in checks["drift/merged/verdicts"]["bound"]
    assert second_run.info.run_id in (root / "artifacts/validate/docs/index.html").read_text()
    assert finished(root)[0].data.metrics["drift/merged/verdicts"] == pytest.approx(expected)

    # More than the bound: the gate stops, and a second try on the same labels finds the same.
    write_workspace(root, change=wrong_more_often(0.6))
    for _ in range(2):
        result = run_validate(root, critical)
        assert result["drift"]["run_id"] == finished(root)[-3].info.run_id
        with pytest.raises(GateError, match=r"drift on summary\.drift/merged/verdicts: observed 0\.\d+, demanded "
                                            r"between 0 and 0\.05 against run [0-9a-f]{32} of 20"):
            run_stage(validate_gate.STAGE, root, critical)
    # As advice it does not stop the chain; then these labels are the standard.
    run_validate(root)
    run_stage(validate_gate.STAGE, root, make_config())
    accepted = finished(root)[0].info.run_id
    write_workspace(root)
    assert run_validate(root)["drift"]["run_id"] == accepted


def test_the_gate_s_file_does_not_depend_on_what_was_compared(tmp_path):
    found = []
    root = write_workspace(tmp_path, change=wrong_more_often(0.5))
    run_validate(root)
    config = make_config(validate={"critical": ["coverage", "drift"], "max_drift": 1.0})
    for change in (wrong_more_often(0), wrong_more_often(0.5), wrong_more_often(0)):
        run_validate(write_workspace(root, change=change), config)
        run_stage(validate_gate.STAGE, root, config)
        found.append((root / "artifacts/validate_gate/passed.json").read_text())
    assert found[0] == found[2] != found[1]
    alone = write_workspace(tmp_path / "alone")
    run_validate(alone, config)
    run_stage(validate_gate.STAGE, alone, config)
    assert (alone / "artifacts/validate_gate/passed.json").read_text() == found[0]


def test_other_profiles_domains_formats_and_unfinished_runs_are_passed_over(tmp_path, monkeypatch, caplog):
    config = make_config()

    def leave(text, profile=config.profile):
        path = tmp_path / drift.FILE
        path.write_text(text)
        with tracking.stage_run(tmp_path, "validate", dataclasses.replace(config, profile=profile)) as run:
            run.log_artifact(path)

    record = drift.record({"merged": strategy([1, 0, 0], [1] * 10, 0.5)}, config, "other labels", True)
    leave(json.dumps(record))
    wanted = finished(tmp_path)[0].info.run_id
    leave(json.dumps(record), profile="it's another")
    leave(json.dumps(record | {"domain": "general"}))
    leave(json.dumps(record | {"format": 0}))
    leave(json.dumps(record | {"passed": False}))
    leave(json.dumps(record | {"labels": "mine"}))
    leave("{")
    with tracking.stage_run(tmp_path, "validate", config):
        pass
    with suppress(RuntimeError), tracking.stage_run(tmp_path, "validate", config) as run:
        run.log_artifact(tmp_path / drift.FILE)
        raise RuntimeError("dies")
    assert [run.info.status for run in finished(tmp_path)].count("FAILED") == 1
    found = drift.find_previous(tmp_path, config, "mine")
    assert (found.run_id, found.strategies) == (wanted, record["strategies"])
    assert "is not a JSON object" in caplog.text
    monkeypatch.setattr(drift, "LOOKED_INTO", 3)
    assert drift.find_previous(tmp_path, config, "mine") == (
        "first run: none of the last 3 finished validate runs of profile default has other labels of domain arithmetic "
        "that passed (1 with these very labels, 0 refused)")


def test_an_unreachable_store_is_said_and_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = run_validate(write_workspace(tmp_path))
    assert result["success"]
    assert not result["drift"]["compared"]
    assert result["drift"]["reason"].startswith("the tracking store cannot be reached: ")
    assert "the labels are not compared with an earlier run's, and this run is not recorded" in caplog.text
    assert "Not compared: the tracking store" in (tmp_path / "artifacts/validate/docs/index.html").read_text()


def test_a_broken_database_is_said_and_stops_nothing(tmp_path, caplog):
    write_workspace(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 100)
    result = run_validate(tmp_path)
    assert not result["drift"]["compared"]
    assert "the tracking store cannot be reached" in caplog.text

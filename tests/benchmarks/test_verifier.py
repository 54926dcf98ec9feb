"""The verifier's benchmark counts verdicts by place, knows what was read by hand, and changes results everywhere."""

from __future__ import annotations

import json

import pandas as pd

from benchmarks import verifier as benchmark


def test_it_counts_what_is_called_wrong_and_names_the_places(tmp_path):
    gsm8k, prm800k = tmp_path / "train.jsonl", tmp_path / "phase1.parquet"
    answers = ["Mia has 3 + 4 = <<3+4=7>>7 eggs.\nThen she has 7 * 2 = 15.\n#### 14", "Five.\n#### 5"]
    gsm8k.write_text("".join(json.dumps({"question": "?", "answer": answer}) + "\n" for answer in answers))
    pd.DataFrame({"next_response": ["2 + 2 = 4", "2 + 2 = 5", "2 + 2 = 5", "no equation", None],
                  "rating": [1.0, 1.0, -1.0, 1.0, None]}).to_parquet(prm800k)
    check = benchmark.make_check()

    assert benchmark.right_solutions(gsm8k, check) == {
        "steps": 3, "right": 1, "wrong": 1, "wrong_steps": [[0, 1, "not read"]]}
    assert benchmark.rated_steps(prm800k, check) == {
        "counts": {"-1.0 False": 1, "1.0 False": 1, "1.0 True": 1}, "wrong_rated_right": [[1, "not read"]]}
    changed = benchmark.changed_results(gsm8k, check)
    changes = ("+1", "-1", "+10", "x2", "x10")
    assert set(changed) == {f"{form} {change}" for form in ("marked", "plain") for change in changes}
    assert all(part == {"steps": 1, "called wrong": 1.0, "called right": 0.0} for part in changed.values())

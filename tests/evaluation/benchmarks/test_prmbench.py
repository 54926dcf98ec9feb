"""PRMBench: PRMScore by hand and beside scikit-learn, its floors, kinds, similarity, and the file's oddities."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from prm_core.errors import InputError
from prm_core.evaluation.benchmarks.prmbench import GROUPS, verdicts
from prm_core.evaluation.benchmarks.suite import BENCHMARKS
from tests.builders import benchmarks as fakes


def row(kind, index, errors, *texts, original=()):
    found = {"modified_question": f"modified {index}", "original_question": f"question {index}", "idx": index,
             "modified_process": list(texts), "error_steps": errors, "classification": kind}
    return found | ({"original_process": list(original)} if original else {})


ROWS = [
    row("redundency", "redundency_p1", [2, 3], "1. 0.9 a", "2. 0.2 b", "3. 0.8 c", original=["0.9 a", "0.4 b"]),
    row("circular", "circular_p1", [1], "0.9 a", "0.3 b"),
    row("multi_solutions", "p2", [], "Step 1. 0.9 a", "Step 2. 0.5 b", "Step 3. 0.7 c"),
]


def scored(tmp_path, rows=ROWS, name="t.jsonl"):
    return fakes.scored("prmbench", tmp_path / name, rows)


def test_prm_score_by_hand(tmp_path):
    file = scored(tmp_path)
    found = fakes.values("prmbench", file)
    # Right steps: passed 0.9 (p1), not 0.3, passed 0.9, not 0.5 (it must exceed the threshold), passed 0.7.
    # Wrong steps: 0.2 caught, 0.8 and 0.9 missed.
    assert found["prm/f1"] == pytest.approx(2 * 3 / (2 * 3 + 2 + 2))
    assert found["prm/f1_negative"] == pytest.approx(2 * 1 / (2 * 1 + 2 + 2))
    assert found["prm/prm_score"] == pytest.approx((0.6 + 1 / 3) / 2)
    assert found["prm/step_accuracy"] == pytest.approx(4 / 8)
    assert (found["prm/right_steps_passed"], found["prm/wrong_steps_caught"]) == (3 / 5, 1 / 3)
    # First errors: 0.2 called, 0.9 not.
    assert found["prm/first_errors_caught"] == 0.5


def test_kinds_groups_and_the_unmodified_chain(tmp_path):
    found = fakes.values("prmbench", scored(tmp_path))
    assert found["prm/prm_score/redundency"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert found["prm/prm_score/circular"] == 0
    # No wrong step to find: F1 alone.
    assert found["prm/prm_score/multi_solutions"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert found["prm/prm_score/simplicity"] == pytest.approx(1 / 3)
    # A group that lacks a kind has no figure.
    assert "prm/prm_score/sensitivity" not in found
    # Outside the total: one of its two steps is passed.
    assert found["prm/right_steps_passed/correct"] == 0.5
    # |2/3 - 1/2| and |1/2 - 1/2|; the third problem brings no unmodified chain.
    assert found["prm/similarity"] == pytest.approx((1 / 6 + 0) / 2)
    assert found["prm/similarity/redundency"] == pytest.approx(1 / 6)


def random_rows(count=60):
    rng = np.random.default_rng(1)
    rows = []
    for index in range(count):
        size = int(rng.integers(3, 9))
        errors = [n for n in range(1, size + 1) if rng.random() < 0.2]
        rows.append(row("deception", f"p{index}", errors, *(f"{rng.random():.4f} x" for _ in range(size))))
    return rows


def test_prm_score_agrees_with_scikit_learn(tmp_path):
    file = scored(tmp_path, random_rows())
    right = [verdict for chain in file.chains for verdict in chain.gold]
    passed = [score > 0.3 for scores in file.scores for score in scores]
    found = fakes.values("prmbench", file, 0.3)
    assert found["prm/f1"] == pytest.approx(f1_score(right, passed))
    assert found["prm/f1_negative"] == pytest.approx(f1_score(right, passed, pos_label=False))


def test_floors_are_what_guessing_gives(tmp_path):
    file = scored(tmp_path, random_rows(200))
    found = fakes.values("prmbench", file)
    right = verdicts(file, 0.5).right.astype(bool)
    rng = np.random.default_rng(2)
    for name, rate in (("random", 0.5), ("coin", right.mean())):
        # scikit-learn's, one by one, take seconds.
        passed = rng.random((300, right.size)) < rate
        runs = [(passed & right).sum(1) * 2 / (passed.sum(1) + right.sum()),
                (~passed & ~right).sum(1) * 2 / ((~passed).sum(1) + (~right).sum())]
        assert found[f"{name}/prm_score"] == pytest.approx(np.mean(runs), abs=0.004)
    assert found["coin/prm_score"] == pytest.approx(0.5)


def test_threshold_for_the_best_prm_score(tmp_path):
    file = scored(tmp_path, random_rows())
    threshold, what = BENCHMARKS["prmbench"].choose([file])
    best = fakes.values("prmbench", file, threshold)["prm/prm_score"]
    assert what == f"PRMScore {100 * best:.1f}"
    assert best >= max(fakes.values("prmbench", file, t)["prm/prm_score"] for t in np.linspace(0, 1, 41)) - 1e-9
    with pytest.raises(InputError, match=r"a threshold needs right and wrong steps"):
        BENCHMARKS["prmbench"].choose([scored(tmp_path, [ROWS[2]], "s.jsonl")])


def test_oddities_of_the_published_file(tmp_path, caplog):
    rows = [
        row("circular", "circular_p1", [2, 9], "1. 0.9 a", "2. 0.3 b"),  # an error step beyond the end
        row("circular", "circular_p1", [1], "0.9 again"),                # the same record twice
        row("deception", "p1", [1], "0.9 a", "  "),                      # a blank step
    ]
    chains = BENCHMARKS["prmbench"].read(fakes.write(tmp_path / "t.jsonl", rows))
    assert [(chain.id, chain.problem, chain.gold) for chain in chains] == [
        ("circular/p1", "p1", (True, False)), ("deception/p1", "p1", (False,))]
    # The number before a step goes, the step stays, also one that begins with a number of its own.
    assert [step.text for step in chains[0].steps] == ["0.9 a", "0.3 b"]
    for line in ("error steps beyond the last step left out: 1", "1 records left out", "blank steps left out: 1"):
        assert line in caplog.text


@pytest.mark.parametrize(("change", "message"), [
    ({"error_steps": [0]}, r"error_steps holds 0"),
    ({"classification": None}, r"fields idx and classification must be texts"),
    ({"modified_process": []}, r"`modified_process` must be a non-empty list"),
    ({"classification": "redundency", "original_process": "x"}, r"`original_process` must be a non-empty list"),
])
def test_a_bad_record_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        BENCHMARKS["prmbench"].read(fakes.write(tmp_path / "t.jsonl", [ROWS[1] | change]))


def test_steps_beyond_the_context_are_passed_and_counted(tmp_path):
    file = scored(tmp_path, [row("deception", "p1", [2], "0.9 a", "0.1 cut")])
    found = fakes.values("prmbench", file)
    assert (file.unscored, found["prm/wrong_steps_caught"], found["prm/first_errors_caught"]) == (1, 0, 0)


def test_files_of_one_benchmark_are_one_pot(tmp_path):
    files = [scored(tmp_path, ROWS[:2], "a.jsonl"), scored(tmp_path, ROWS[1:], "b.jsonl")]
    _, together = fakes.figures("prmbench", files)
    whole, _ = fakes.figures("prmbench", [scored(tmp_path)])
    # circular/p1 is in both files and counts once.
    assert (together.chains, together.problems) == (4, 2)
    assert together.estimates["prm/prm_score"] == whole[0].estimates["prm/prm_score"]


def test_groups_name_each_kind_once():
    kinds = [kind for group in GROUPS.values() for kind in group]
    assert len(kinds) == len(set(kinds)) == 9

"""`prm evaluate`: the benchmark formats, the protocol on files, the command line, and the real ProcessBench floors."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from prm_core.cli.scoring.evaluate import evaluate
from prm_core.config import WorkersConfig
from prm_core.errors import InputError
from prm_core.evaluation import metrics
from prm_core.evaluation.benchmarks import suite
from prm_core.evaluation.benchmarks.suite import BENCHMARKS, BenchmarkChain
from prm_core.evaluation.metrics import Bootstrap
from prm_core.scoring.scorer import ChainScore
from prm_core.types import Step
from tests.builders import evaluation as fakes
from tests.builders import fake_ray

ROWS = [
    {"id": "a", "problem": "P1", "steps": ["good", "bad 1"], "label": 1, "final_answer_correct": False},
    {"id": "b", "problem": "P1", "steps": ["good", "good"], "label": -1, "final_answer_correct": True},
    {"id": "c", "problem": "P2", "steps": ["bad 2", "good", "good"], "label": 0, "final_answer_correct": True},
    {"id": "d", "problem": "P3", "steps": ["good\nand more"], "label": -1, "final_answer_correct": True},
]


class WordScorer:
    """0.9 for a good step, 0.2 for `bad 1`, 0.6 for any other."""

    kind, version = "process", "words"

    def score(self, chains):
        table = [tuple(0.9 if s.text.startswith("good") else 0.2 if s.text == "bad 1" else 0.6 for s in steps)
                 for _, steps in chains]
        return [ChainScore(scores, scores, 0) for scores in table]


def write(path: Path, rows, lines=False) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return path


def test_processbench_reads_array_and_lines_alike(tmp_path):
    read = BENCHMARKS["processbench"].read
    rows = read(write(tmp_path / "a.json", ROWS))
    assert rows == read(write(tmp_path / "b.jsonl", ROWS, lines=True))
    assert rows[0] == BenchmarkChain("P1", (Step("good"), Step("bad 1")), (True, False), 1, False)
    assert [row.label for row in rows] == [1, -1, 0, -1]


@pytest.mark.parametrize(("change", "message"), [
    ({"label": 2}, r"record 0: label 2 of 2 steps"),
    ({"label": True}, r"record 0: field label is true, expected int"),
    ({"label": None}, r"record 0: field label is null, expected int"),
    ({"problem": 3}, r"record 0: field problem is 3, expected str"),
    ({"steps": ["good", 1]}, r"record 0: steps 1 is 1, expected a text"),
    ({"steps": []}, r"record 0: `steps` must be a non-empty list"),
])
def test_a_bad_record_is_named(tmp_path, change, message):
    path = write(tmp_path / "bad.json", [ROWS[0] | change])
    with pytest.raises(InputError, match=rf"bad\.json: {message}"):
        BENCHMARKS["processbench"].read(path)


@pytest.mark.parametrize(("text", "message"), [
    ("[]", "holds no records"), ("", "holds no records"), ("[3]", "record 0 is int"), ("{oops", ":1: not valid JSON"),
])
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        BENCHMARKS["processbench"].read(path)


def test_arithmetic_takes_a_label_or_asks_the_oracle(tmp_path):
    problem = fakes.problems(1)[0]
    solution = problem.meta["solution"]
    wrong = [re.sub(r"= \d+\.$", "= 999.", solution[0]), *solution[1:]]
    base = {"prompt": problem.prompt, "answer": problem.answer, "meta": problem.meta}
    rows = [base | {"steps": solution}, base | {"steps": wrong}, {"prompt": "x", "steps": ["a", "b"], "label": 1},
            base | {"steps": solution[:-1]}]
    read = BENCHMARKS["arithmetic"].read(write(tmp_path / "a.jsonl", rows, lines=True))
    assert [row.label for row in read] == [-1, 0, 1, len(solution) - 2]
    assert [row.outcome for row in read] == [True, True, None, False]
    with pytest.raises(InputError, match=r"b\.jsonl:1: neither `label` nor the problem's `meta`"):
        BENCHMARKS["arithmetic"].read(write(tmp_path / "b.jsonl", [{"prompt": "x", "steps": ["a"]}], lines=True))


def scored(tmp_path, rows=ROWS, name="f.json"):
    chains = BENCHMARKS["processbench"].read(write(tmp_path / name, rows))
    return suite.score_file(WordScorer(), name, chains)


def test_figures_by_hand_and_their_average(tmp_path):
    first, second = scored(tmp_path), scored(tmp_path, ROWS[:2], "g.json")
    figures, together = suite.measure_files(BENCHMARKS["processbench"], [first, second], 0.5, 200, 0)
    each, average = {row.name: row.estimates for row in figures}, together.estimates
    # At 0.5 `bad 2` (0.6) is missed: one of two errors found, both sound chains passed.
    assert each["f.json"]["prm/acc_err"].value == 0.5
    assert each["f.json"]["prm/first_error_f1"].value == pytest.approx(2 / 3)
    assert each["f.json"]["random/acc_err"].value == pytest.approx((1 / 3 + 1 / 4) / 2)
    # Wrong answers: chain a alone; its middle step of two is step 1.
    assert each["f.json"]["middle/acc_err"].value == 0.5
    assert each["g.json"]["prm/first_error_f1"].value == 1
    assert average["prm/first_error_f1"].value == pytest.approx((2 / 3 + 1) / 2)
    assert average["prm/first_error_f1"].low <= average["prm/first_error_f1"].value


def test_parts_of_a_file_are_scored_by_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("prm_core.evaluation.benchmarks.base.CHAINS_PER_CALL", 1)
    here = scored(tmp_path)
    chains = BENCHMARKS["processbench"].read(tmp_path / "f.json")
    ray = fake_ray.FakeRay(lambda worker, method, _: method == "do" and worker == 0)
    with fake_ray.installed(ray):
        assert suite.score_file(WordScorer(), "f.json", chains, who=WorkersConfig(runner="ray")) == here
    assert sorted(part for _, part in ray.done) == list(range(len(chains)))


def test_a_chain_that_cannot_be_scored_is_named(tmp_path):
    class Narrow(WordScorer):
        def score(self, chains):
            if any(prompt == "P2" for prompt, _ in chains):
                raise InputError("the prompt does not fit")
            return super().score(chains)

    chains = BENCHMARKS["processbench"].read(write(tmp_path / "f.json", ROWS))
    with pytest.raises(InputError, match=r"f\.json: chain 2: the prompt does not fit"):
        suite.score_file(Narrow(), "f.json", chains)


def test_a_chain_longer_than_the_context_is_left_out_counted_and_named(tmp_path, caplog):
    class Narrow(WordScorer):
        def score(self, chains):
            return [ChainScore((), (), len(steps)) if prompt == "P2" else score
                    for (prompt, steps), score in zip(chains, super().score(chains), strict=True)]

    chains = BENCHMARKS["processbench"].read(write(tmp_path / "f.json", ROWS))
    file = suite.score_file(Narrow(), "f.json", chains)
    assert [chain.problem for chain in file.chains] == [chain.problem for row, chain in enumerate(chains) if row != 2]
    assert "f.json: 1 of 4 chains are left out: " in caplog.text
    assert "no room for their first step: chain 2" in caplog.text
    figures, _ = suite.measure_files(BENCHMARKS["processbench"], [file], 0.5, 200, 0)
    flat = figures[0].flat()
    assert (flat["chains"], flat["left_out_chains"], flat["unscored_steps"]) == (3, 1, 0)
    # The error it missed is in the chain that is not measured.
    assert flat["prm/acc_err"] == 1
    # Where chains are ranked it stays, as the last of its problem.
    ranked = suite.score_file(Narrow(), "f.json", chains, ranks=True)
    assert (len(ranked.chains), ranked.scores[2], ranked.left_out) == (4, (), 0)
    with pytest.raises(InputError, match=r"f\.json: no chain fits the model's context"):
        suite.score_file(Narrow(), "f.json", chains[2:3])


def test_threshold_from_a_file_with_one_kind_of_chain_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"only\.json: a threshold needs chains with an error"):
        BENCHMARKS["processbench"].choose([scored(tmp_path, [ROWS[1]], "only.json")])


@pytest.fixture
def command(monkeypatch):
    app = typer.Typer()
    app.command()(evaluate)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("prm_core.scoring.foreign.load_any_scorer", lambda folder, **settings: WordScorer())
    monkeypatch.setattr("prm_core.serving.model_registry.reward_model_folder", lambda uri, workspace: Path(uri))
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments), "--model", "m"])


def test_command_chooses_the_threshold_on_another_file(command, tmp_path):
    file, dev = write(tmp_path / "f.json", ROWS), write(tmp_path / "dev.json", ROWS)
    out = tmp_path / "out" / "figures.json"
    result = command(file, "--benchmark", "processbench", "--threshold-from", dev, "--out", out)
    assert result.exit_code == 0, result.output
    assert "middle F1" in result.output
    # Expected hits of a uniform guess: (1/3 + 1/4) / 2 of the errors, (1/3 + 1/2) / 2 of the sound chains.
    assert {"random 34.3", "random 29.2", "random 41.7"} <= set(re.findall(r"random \d+\.\d", result.output))
    table = json.loads(out.read_text())
    # Between 0.6 and 0.9 every error is found.
    assert table["threshold"] == pytest.approx(0.75)
    found = table["files"][str(file)]
    assert (found["prm/first_error_f1"], found["chains"], found["problems"]) == (1.0, 4, 3)
    assert (table["model_version"], table["model_kind"], table["together"]) == ("words", "process", None)
    assert table["threshold_rule"] == f"chosen on {dev} (first-error F1 100.0 there)"
    assert "best in hindsight" not in result.output
    assert {"random/first_error_f1", "random/first_error_f1_low", "middle/first_error_f1"} <= set(found)


def test_command_warns_of_a_threshold_from_the_measured_file(command, tmp_path):
    file = write(tmp_path / "f.json", ROWS)
    # The same file by another name is read and scored once.
    result = command(file, "--benchmark", "processbench", "--threshold-from", tmp_path / "." / "f.json")
    assert "best in hindsight" in " ".join(result.output.split())
    assert result.output.count("scoring f.json: 100%") == 1


def test_command_prints_within_the_terminal(command, tmp_path):
    # A bracketed name is a name, no markup of the terminal.
    files = [write(tmp_path / f"{name}.json", ROWS) for name in ("a-file-with-a-long-name", "b[b][i]")]
    result = command(*files, "--benchmark", "processbench", "--reliability", tmp_path / "plots" / "r.png")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "average" in result.output
    assert "b[b][i].json" in result.stdout
    assert (tmp_path / "plots" / "r.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("arguments", "message"), [
    (["f.json", "--benchmark", "best_of_n", "--threshold", "0.5"], "takes no threshold"),
    (["f.json", "--benchmark", "mathbench"],
     "unknown benchmark 'mathbench'; known: agentprocessbench, arithmetic, best_of_n"),
    (["f.json", "--benchmark", "processbench", "--threshold", "0.5", "--threshold-from", "f.json"], "give one of them"),
    (["f.json", "f.json", "--benchmark", "processbench"], "named twice"),
    (["none.json", "--benchmark", "processbench"], "no such file"),
])
def test_bad_commands_are_one_clear_line(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "f.json", ROWS)
    result = command(*arguments)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_an_outcome_model_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.setattr(WordScorer, "kind", "outcome")
    result = command(write(tmp_path / "f.json", ROWS), "--benchmark", "processbench")
    assert "an outcome reward model scores no steps" in str(result.exception)


def test_an_outcome_model_may_choose_among_chains(command, tmp_path, monkeypatch):
    monkeypatch.setattr(WordScorer, "kind", "outcome")
    monkeypatch.setattr(WordScorer, "score", lambda self, chains: [
        ChainScore((0.9 if steps[-1].text == "good" else 0.1,), (), 0) for _, steps in chains])
    candidates = [{"steps": ["bad 2", last], "outcome": last == "good"} for last in ("good", "bad 1")]
    file, out = write(tmp_path / "f.json", [{"prompt": "P", "candidates": candidates}]), tmp_path / "out.json"
    result = command(file, "--benchmark", "best_of_n", "--out", out)
    assert result.exit_code == 0, result.output
    table = json.loads(out.read_text())
    found = table["files"][str(file)]
    assert (found["outcome/accuracy_at_2"], found["random/accuracy_at_2"], table["threshold"]) == (1.0, 0.5, None)


def test_a_reliability_plot_needs_verdicts(command, tmp_path):
    candidates = [{"steps": ["good"], "outcome": True}, {"steps": ["bad 1"], "outcome": False}]
    file = write(tmp_path / "f.json", [{"prompt": "P", "candidates": candidates}])
    result = command(file, "--benchmark", "best_of_n", "--reliability", tmp_path / "r.png")
    assert "say of no step whether it is right" in str(result.exception)


@pytest.mark.shared
def test_floors_on_the_real_processbench():
    folder = os.environ.get("PRM_SHARED_DATA")
    file = Path(folder or "") / "processbench" / "gsm8k.json"
    if not folder or not file.is_file():
        pytest.skip("PRM_SHARED_DATA names no folder with processbench/gsm8k.json")
    chains = BENCHMARKS["processbench"].read(file)
    owners: dict[str, int] = {}
    problem = [owners.setdefault(chain.prompt, len(owners)) for chain in chains]
    gold, steps = [c.label for c in chains], [len(c.steps) for c in chains]
    assert (len(chains), sum(label >= 0 for label in gold)) == (400, 207)
    bootstrap = Bootstrap(len(owners), 200, 0)
    random = bootstrap.estimate(metrics.random_tally(steps, gold, problem, len(owners)).f1)
    middle = metrics.middle_tally(steps, [bool(c.outcome) for c in chains], gold, problem, len(owners))
    assert random.value == pytest.approx(0.1722, abs=5e-5)
    assert bootstrap.estimate(middle.f1).value == pytest.approx(0.351, abs=5e-4)

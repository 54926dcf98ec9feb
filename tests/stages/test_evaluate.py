"""The evaluate stage: what it writes, that it repeats, resumes after a kill, and does without an oracle."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from prm_core import config as configuration
from prm_core.cli.report import report
from prm_core.config import WorkersConfig
from prm_core.domains import DOMAINS
from prm_core.domains.oracle import ORACLES
from prm_core.errors import InputError
from prm_core.evaluation import judged_chains
from prm_core.evaluation.judged_chains import Chain, first_per_problem, latency_ms_per_step, sample_chains
from prm_core.evaluation.label_quality import LabelQuality, Population, StrategyQuality
from prm_core.models.tokenizer import train_tokenizer
from prm_core.platform import store
from prm_core.platform.tracking import code_date, code_version
from prm_core.rules.constitution import load
from prm_core.scoring.conformal import Promises
from prm_core.scoring.scorer import ChainScore
from prm_core.search.base import Found, Meter
from prm_core.stages import evaluate as stage
from prm_core.stages.base import StageIO
from prm_core.types import Problem, Step, StepLabel, Trajectory
from tests import ROOT
from tests.builders import errands, fake_ray
from tests.builders import evaluation as fakes

LABELS = LabelQuality(Population(1, 1, "oracle", 1, 1.0, [
    StrategyQuality("merged", 1.0, 0.0, 1, 1.0, 1, 1.0, 1.0, 1.0, 0.0)]), None, [],
    {"policy/human_labels": 0, "other/human_labels": 0, "identity_reason": ""})
PARAMS = ROOT / "params.yaml"
TEST, DEV = fakes.problems(30), fakes.problems(20, "dev")
SHIFTED = DOMAINS["arithmetic"].shifted["standard"]("shifted", 12, 0, ())
TOKENIZER = train_tokenizer(problem.prompt for problem in TEST)
HISTORY = [{"update": 5, "loss": 0.7, "note": "text"}, {"update": 10, "loss": 0.4, "note": "text"}]


@pytest.fixture(scope="module")
def config():
    raw = configuration.read_yaml(PARAMS)
    small = {"evaluate": {"samples": 8, "best_of": [1, 4, 8], "bootstrap": 200, "latency_repeats": 2,
                          "search": []},
             "generate": {"shard_size": 10}}
    return configuration.parse(configuration.merge(raw, small), "test")


class Tracked:
    def __init__(self):
        self.metrics, self.artifacts = {}, []

    def log_metrics(self, metrics, step=None):
        self.metrics |= {key: float(value) for key, value in metrics.items()}

    def note_output(self, path):
        assert path.exists()

    def log_artifact(self, path):
        assert path.exists()
        self.artifacts.append(path.name)


@pytest.fixture
def world(monkeypatch):
    """Fakes where the stage loads models and opens an MLflow run; returns what they recorded."""
    seen = {"policies": [], "dies_at": None, "problems": [*TEST, *DEV, *SHIFTED], "tracked": Tracked()}

    def load_policy(path, config):
        trained = "train_policy" in path
        policy = fakes.FakePolicy(seen["problems"], 0.06 if trained else 0.15, "trained" if trained else "base",
                                  None if trained else seen["dies_at"])
        seen["policies"].append(policy)
        return policy

    def load_scorer(folder, *, device, batch_size):
        outcome = Path(folder).name == "orm"
        return fakes.FakeScorer(seen["problems"], "outcome" if outcome else "process", 3 if outcome else 8)

    @contextmanager
    def stage_run(workspace, name, config, inputs):
        assert name == "evaluate"
        yield seen["tracked"]

    monkeypatch.setattr("prm_core.sampling.policy.load_policy", load_policy)
    monkeypatch.setattr("prm_core.models.loading.load_tokenizer", lambda path: TOKENIZER)
    monkeypatch.setattr("prm_core.scoring.scorer.load_scorer", load_scorer)
    monkeypatch.setattr("prm_core.platform.tracking.stage_run", stage_run)
    return seen


def make_io(folder: Path, dev=DEV, test=TEST, shifted=()) -> StageIO:
    inputs = {name: folder / path for name, path in stage.STAGE.inputs.items()}
    store.write_jsonl(inputs["dev"], dev)
    store.write_jsonl(inputs["test"], test)
    store.write_jsonl(inputs["shifted"], shifted)
    for name in ("models", "prm", "orm", "policy", "human", "evidence"):
        inputs[name].mkdir(parents=True)
    chain = Trajectory("gen-0", test[0].id, "base", tuple(map(Step, test[0].meta["solution"])), None, True, 0)
    store.write_jsonl(inputs["train"], test[:1])
    store.write_shard(inputs["generated"], 0, Trajectory, [chain])
    for name, strategy in (("labels", "rollout"), ("merged", "merged")):
        # Right but for the first step.
        store.write_shard(inputs[name], 0, StepLabel, [
            StepLabel("gen-0", index, strategy, 1.0, index > 0, 0.9, 10 if name == "labels" else 0, "")
            for index in range(len(chain.steps))])
    store.write_json(inputs["calibration"], {"policy/human_labels": 0, "other/human_labels": 0, "identity_reason": ""})
    store.write_json(inputs["probe"], {"probe/suffix/passed": 0.25})
    store.write_json(inputs["prm_history"], {"prm": HISTORY, "orm": HISTORY})
    store.write_json(inputs["policy_history"], HISTORY)
    outputs = {name: folder / path for name, path in stage.STAGE.outputs.items()}
    (folder / "work").mkdir()
    return StageIO(inputs, outputs, folder / "work", folder)


def metrics_of(io: StageIO) -> dict:
    table = store.read_json(io.outputs["metrics"])
    return {key: value for key, value in table.items() if "latency" not in key}


def test_metrics_contract(world, config, tmp_path):
    io = make_io(tmp_path)
    stage.run(config, io)
    table = store.read_json(io.outputs["metrics"])
    estimates = [
        "policy_base/pass_at_1", "policy_trained/pass_at_1", "policy_base/process_consistency",
        "policy_trained/process_consistency", "trained_minus_base/pass_at_1", "prm_minus_majority/accuracy_at_8",
        "prm_minus_orm/accuracy_at_8", "prm/first_error_f1", "prm/acc_err", "prm/acc_ok", "prm/step_accuracy",
        "prm/auroc", "prm/ece", "prm/brier", "random/first_error_f1",
        *(f"{method}/accuracy_at_{n}" for n in (1, 4, 8)
          for method in ("majority", "weighted_majority", "orm_best_of_n", "prm_best_of_n", "oracle")),
    ]
    for name in estimates:
        low, value, high = (table[f"test/{name}{end}"] for end in ("_low", "", "_high"))
        assert low <= value <= high, name
    assert table["test/n_problems"] == 30
    assert table["dev/n_problems"] == 20
    assert table["test/policy_base/n_chains"] == 240
    assert table["test/n_step_chains"] == 120
    assert table["test/seed"] == config.seed
    # The page again, from what was saved.
    assert stage.render_again(config, tmp_path) == io.outputs["report"].read_text()
    assert (table["commit"], table["committed"]) == (code_version(), code_date())
    steps = len(TEST[0].meta["solution"])
    assert table["labels/rollout/accuracy"] == pytest.approx((steps - 1) / steps)
    assert (table["labels/rollout/tokens_per_step"], table["labels/merged/tokens_per_step"]) == (10, 10)
    assert table["test/prm/latency_ms_per_step"] > 0
    assert 0 < table["test/prm/threshold"] < 1
    assert table["test/trained_minus_base/pass_at_1"] == pytest.approx(
        table["test/policy_trained/pass_at_1"] - table["test/policy_base/pass_at_1"])
    # MLflow gets every number of the file, and the two things people look at.
    assert world["tracked"].metrics == {k: float(v) for k, v in table.items() if not isinstance(v, str)}
    assert sorted(world["tracked"].artifacts) == ["plots", "report.html"]
    # What `dvc metrics show` lists is a dozen of them.
    shown = store.read_json(io.outputs["headline"])
    assert len(shown) == 15
    assert shown["suffix_passes"] == table["probe/suffix/passed"] == 0.25
    assert shown["prm_at_8"] == round(table["test/prm_best_of_n/accuracy_at_8"], 4)


def test_an_alarm_and_a_clean_prefix_are_fitted_on_dev_and_measured_on_the_rest(world, config, tmp_path):
    dev = fakes.problems(90, "dev")
    world["problems"] += dev
    io = make_io(tmp_path / "many", dev=dev, shifted=SHIFTED)
    stage.run(config, io)
    table, promises = metrics_of(io), Promises.read(io.outputs["promises"])
    assert promises.alarm.runs >= 45
    assert promises.prefix.runs == 90
    for split in ("test", "shifted"):
        for name in ("alarm_false", "alarm_stopped", "alarm_stopped_early", "prefix_broken", "prefix_broken_promises"):
            low, value, high = (table[f"{split}/prm/{name}{end}"] for end in ("_low", "", "_high"))
            assert 0 <= low <= value <= high <= 1
        assert 0 < table[f"{split}/prm/alarm_steps_saved"] < 1
        assert 0 < table[f"{split}/prm/prefix_steps_kept"] <= 1
    assert table["test/prm/alarm_stopped_early"] < table["test/prm/alarm_stopped"]
    assert not [key for key in table if key.startswith("dev/prm")]

    few = make_io(tmp_path / "few")
    stage.run(config, few)
    assert Promises.read(few.outputs["promises"]) == Promises()
    table = metrics_of(few)
    assert "calibration runs" in table["dev/prm/prefix_left_out"]
    assert "calibration runs that do not fail" in table["dev/prm/alarm_left_out"]
    assert not [key for key in table if key.startswith(("test/prm/alarm", "test/prm/prefix"))]


def test_people_speak_of_the_generated_chain_that_they_judged_a_copy_of(tmp_path):
    """Where no oracle judges. Chains the policy did not write stay another population."""
    asked = Problem("p", "general", "How many?", "4")
    io = make_io(tmp_path, test=[replace(TEST[0], id=asked.id, domain="general", prompt=asked.prompt)])
    own = store.read_shards(Trajectory, io.inputs["generated"])[0]
    kept = replace(own, id="gen-0@copy", problem_id="p@copy")
    other = replace(kept, id="h", policy="ann", steps=own.steps[:1])
    store.write_jsonl(io.inputs["human"] / "problems.jsonl", [replace(asked, id="p@copy")])
    store.write_jsonl(io.inputs["human"] / "trajectories.jsonl", [kept, other])
    store.write_jsonl(io.inputs["human"] / "labels.jsonl", [
        StepLabel(kept.id, 0, "human:ann", 0.0, False, 1.0, 0, ""),
        StepLabel(other.id, 0, "human:ann", 1.0, True, 1.0, 0, "")])

    found = stage._measure_labels(io.inputs)

    assert (found.generated.chains, found.generated.gold, found.generated.gold_steps) == (1, "people", 1)
    # The labels call the first step wrong, and so do people.
    assert [one.chain_error for one in found.generated.strategies] == [0.0, 0.0]
    assert (found.human.chains, found.human.gold_steps, found.human.gold_right) == (1, 1, 1.0)
    assert found.claimed == store.read_json(io.inputs["calibration"])


def test_shifted_problems_get_the_same_figures_at_the_same_threshold(world, config, tmp_path):
    io, usual = make_io(tmp_path / "a", shifted=SHIFTED), make_io(tmp_path / "b")
    stage.run(config, io)
    stage.run(config, usual)
    table, without = metrics_of(io), metrics_of(usual)

    found, test = ({key.removeprefix(f"{split}/").removesuffix("_left_out") for key in table
                    if key.startswith(f"{split}/") and not key.endswith(("_low", "_high"))}
                   for split in ("shifted", "test"))
    # Searches are compared on the usual problems alone.
    assert found == {key for key in test if not key.startswith("search/")}
    assert table["shifted/prm/threshold"] == table["test/prm/threshold"]
    assert (table["shifted/n_problems"], table["shifted/policy_base/n_chains"], table["shifted/n_step_chains"],
            table["shifted/policy_trained/n_chains"]) == (12, 12 * 8, 12 * 4, 12 * 4)
    rows = [row for row in store.read_shards(Trajectory, io.outputs["trajectories"])
            if row.id.startswith("shifted-base/")]
    assert table["shifted/policy_base/pass_at_1"] == pytest.approx(sum(row.outcome for row in rows) / len(rows))
    shown = store.read_json(io.outputs["headline"])
    assert shown["shifted_first_error_f1"] == round(table["shifted/prm/first_error_f1"], 4)

    # They change no other figure, and where there are none, nothing is said of them.
    assert {key: value for key, value in table.items() if not key.startswith("shifted/")} == without
    page, other = io.outputs["report"].read_text(), usual.outputs["report"].read_text()
    assert stage.render_again(config, tmp_path / "a") == page
    assert f"{table['shifted/prm/first_error_f1']:.3f}" in page.split('<h2 id="shifted">')[1].split("<h2")[0]
    assert "hifted" not in other


def test_the_page_again_needs_what_was_saved_and_refuses_what_belongs_to_another(world, config, tmp_path):
    io = make_io(tmp_path)
    with pytest.raises(InputError, match=r"the report needs artifacts/evaluate/trajectories, which is not there"):
        stage.render_again(config, tmp_path)
    stage.run(config, io)
    lines = io.outputs["scores"].read_text().splitlines(keepends=True)
    assert len(lines) == 30 * 8 + (30 + 20) * 4
    io.outputs["scores"].write_text("".join(lines[1:]))
    with pytest.raises(InputError, match=r"scores\.jsonl: is not of the trajectories"):
        stage.render_again(config, tmp_path)
    page = tmp_path / "artifacts/evaluate/report.html"
    with pytest.raises(InputError, match="DVC knows it by its contents"):
        report(page, tmp_path)


def test_agents_have_figures_of_their_own(world, config, tmp_path, monkeypatch):
    splits = {name: DOMAINS["errands"].levels["team"](name, count, 0, ()) for name, count in (("dev", 6), ("test", 8))}
    world["problems"] = [problem for problems in splits.values() for problem in problems]
    policy = errands.TeamPolicy(world["problems"], 0.1)
    monkeypatch.setattr("prm_core.sampling.policy.load_policy", lambda path, config: policy)
    monkeypatch.setattr("prm_core.models.loading.load_tokenizer", lambda path: policy.encoder.tokenizer)
    monkeypatch.setattr(stage, "_measure_labels", lambda inputs: LABELS)
    io = make_io(tmp_path)
    for name, problems in splits.items():
        store.write_jsonl(io.inputs[name], problems)
    stage.run(config, io)
    table = store.read_json(io.outputs["metrics"])
    for name in ("planner", "worker", "checker"):
        assert 0 < table[f"test/agent/{name}/steps_low"] <= table[f"test/agent/{name}/steps"]
        assert 0 <= table[f"test/agent/{name}/wrong"] < 1
        assert table[f"test/agent/{name}/cost_error"] > 0
        assert f"<td>{name}</td>" in io.outputs["report"].read_text()
    assert sum(table[f"test/agent/{name}/first_errors"] for name in ("planner", "worker", "checker")) == (
        pytest.approx(1))
    assert table["test/majority/faulty_agent"] <= 1
    assert table["test/random/faulty_agent"] < table["test/prm/faulty_agent"]
    assert 1 <= table["test/agent/cost_runs"] <= 8
    assert stage.render_again(config, tmp_path) == io.outputs["report"].read_text()


def test_figures_agree_with_the_trajectories_written(world, config, tmp_path):
    io = make_io(tmp_path)
    stage.run(config, io)
    table = metrics_of(io)
    rows = store.read_shards(Trajectory, io.outputs["trajectories"])
    assert len({row.id for row in rows}) == len(rows) == 30 * 8 + (30 + 20) * 4
    problems = {problem.id: problem for problem in TEST}
    base = [row for row in rows if row.id.startswith("test-base/")]
    assert {row.policy for row in base} == {"base"}
    assert table["test/policy_base/pass_at_1"] == pytest.approx(sum(row.outcome for row in base) / len(base))
    right = [row for row in base if row.outcome]
    clean = [row for row in right if all(ORACLES["arithmetic"](problems[row.problem_id], row.steps))]
    assert table["test/policy_base/process_consistency"] == pytest.approx(len(clean) / len(right))
    solved = defaultdict(bool)
    for row in base:
        solved[row.problem_id] |= bool(row.outcome)
    assert table["test/oracle/accuracy_at_8"] == pytest.approx(sum(solved.values()) / 30)


def test_plots_are_csv_with_stable_headers(world, config, tmp_path):
    io = make_io(tmp_path)
    stage.run(config, io)
    headers = {path.name: path.read_text().splitlines()[0] for path in io.outputs["plots"].iterdir()}
    assert headers == {
        "best_of_n.csv": "method,n,accuracy,low,high",
        "reliability.csv": "bin_low,bin_high,mean_score,observed_share,count",
        "length.csv": "steps,chains,mean_score,share_right",
        "scores.csv": "verdict,bin_low,bin_high,count",
    }
    with (io.outputs["plots"] / "best_of_n.csv").open() as file:
        rows = {(row["method"], row["n"]): float(row["accuracy"]) for row in csv.DictReader(file)}
    table = metrics_of(io)
    assert len(rows) == 18
    assert rows["prm_best_of_n", "8"] == table["test/prm_best_of_n/accuracy_at_8"]


def test_killed_and_resumed_gives_the_undisturbed_metrics(world, config, tmp_path):
    undisturbed = make_io(tmp_path / "a")
    stage.run(config, undisturbed)
    # Calls of the base policy: two shards of dev, four of test; it dies in the fourth.
    disturbed = make_io(tmp_path / "b")
    world["dies_at"] = 4
    with pytest.raises(KeyboardInterrupt):
        stage.run(config, disturbed)
    assert not any(path.exists() for path in disturbed.outputs.values())
    world["dies_at"] = None
    world["policies"].clear()
    stage.run(config, disturbed)
    assert [policy.calls for policy in world["policies"]] == [3, 4]
    assert metrics_of(disturbed) == metrics_of(undisturbed)
    assert disturbed.outputs["plots"].joinpath("best_of_n.csv").read_text() == (
        undisturbed.outputs["plots"].joinpath("best_of_n.csv").read_text())


def test_without_an_oracle_step_metrics_are_left_out_with_the_reason(world, config, tmp_path, monkeypatch):
    def general(problems):
        return [Problem(p.id, "general", p.prompt, p.answer, p.meta) for p in problems]

    # The fake models still know the arithmetic; only the evaluation is without it.
    io = make_io(tmp_path, general(DEV), general(TEST))
    stage.run(config, io)
    table = metrics_of(io)
    assert "no oracle" in table["test/prm/step_metrics_left_out"]
    assert "no dev chain has gold" in table["test/prm/chosen_threshold_left_out"]
    assert table["test/prm/threshold"] == config.serve.threshold
    assert "test/prm/first_error_f1" not in table
    assert "test/policy_base/process_consistency" not in table
    assert table["test/prm_best_of_n/accuracy_at_8"] > table["test/policy_base/pass_at_1"]
    report = io.outputs["report"].read_text()
    assert "no oracle judges the steps of domain general" in report
    assert report.count('<article class="card">') >= config.evaluate.shown_trajectories


def test_more_candidates_than_samples_is_refused_before_anything_runs(world, config, tmp_path):
    wrong = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, best_of=[1, 16]))
    with pytest.raises(InputError, match=r"lower N or raise evaluate\.samples"):
        stage.run(wrong, make_io(tmp_path))
    assert world["policies"] == []


def test_chains_that_stop_early_stay_and_are_wrong(tmp_path):
    class Silent:
        forks = True

        version = "silent"

        def sample(self, prompts, **settings):
            return [[fakes.SampledChain((), True, 1), fakes.SampledChain(("The answer is 3.",), False, 5)]
                    for _ in prompts]

    problem = replace(TEST[0], answer="3")
    plan = judged_chains.Plan(2, 1.0, 8, 8, 1, 0)
    chains = sample_chains(Silent(), [problem], "x", plan, tmp_path)
    assert [chain.right for chain in chains] == [False, False]
    scorer = fakes.FakeScorer([problem], "process", 8)
    scored = judged_chains.score_with_prm(scorer, chains, [problem], "min", tmp_path / "s")
    assert (scored[0].step_scores, scored[0].prm_score) == ((), 0.0)
    assert judged_chains.counts(scored) == {
        "n_chains": 2, "n_empty_chains": 1, "n_truncated_chains": 0, "n_chains_without_answer": 2}


def test_a_truncated_chain_ranks_last(tmp_path):
    class Short:
        def score(self, chains):
            return [ChainScore((0.9,), (0.9,), len(steps) - 1) for _, steps in chains]

    chains = [Chain(0, Trajectory(f"t{n}", "p", "x", (Step("a"),) * n, "1", True, 0)) for n in (1, 2)]
    scored = judged_chains.score_with_prm(Short(), chains, TEST[:1], "min", tmp_path)
    assert [chain.prm_score for chain in scored] == [0.9, 0.0]
    assert [chain.truncated for chain in scored] == [False, True]


def test_shards_of_scores_are_not_scored_twice(tmp_path):
    chains = [Chain(0, Trajectory(f"t{n}", "p", "x", (Step("The answer is 1."),), "1", True, 0)) for n in range(5)]
    first, second = (fakes.FakeScorer(TEST[:1], "process", 8) for _ in range(2))
    once = judged_chains.score_with_prm(first, chains, TEST[:1], "min", tmp_path, shard_size=2)
    again = judged_chains.score_with_prm(second, chains, TEST[:1], "min", tmp_path, shard_size=2)
    assert (first.calls, second.calls) == (4, 0)
    assert once == again


def test_shards_draw_unlike_chains_and_the_same_ones_every_time(tmp_path):
    problem = TEST[0]
    plan = judged_chains.Plan(6, 1.0, 8, 8, 1, 0)
    twins = [replace(problem, id="a"), replace(problem, id="b")]
    policy = fakes.FakePolicy([problem], 0.4, "base")
    first = sample_chains(policy, twins, "x", plan, tmp_path / "1")
    assert sample_chains(policy, twins, "x", plan, tmp_path / "2") == first
    texts = [[step.text for step in chain.trajectory.steps] for chain in first]
    assert texts[:6] != texts[6:]


def test_step_figures_use_the_first_chains_of_each_problem():
    rows = [Chain(p, Trajectory(f"{p}/{k}", "p", "x", (Step("a"),), None, False, 0)) for p in (0, 1) for k in range(3)]
    assert [chain.trajectory.id for chain in first_per_problem(rows, 2)] == ["0/0", "0/1", "1/0", "1/1"]


def test_latency_is_the_median_round_per_step():
    times = iter([0.0, 0.3, 1.0, 1.2, 2.0, 3.0])
    chain = Chain(0, Trajectory("t", "p", "x", (Step("The answer is 1."),) * 2, "1", True, 0))
    scorer = fakes.FakeScorer(TEST[:1], "process", 8)
    assert latency_ms_per_step(scorer, [chain], TEST[:1], 3, clock=lambda: next(times)) == pytest.approx(150)


def test_real_models_through_the_stage(config, tmp_path, monkeypatch):
    """Untrained models of real classes: sampling, scoring and MLflow as in production."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from prm_core.models.encoder import Encoder
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.scorer import save_reward_model
    from tests.builders.training import KINDS

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    torch.manual_seed(0)
    io = make_io(tmp_path, DEV[:3], TEST[:4])
    texts = [text for p in (*TEST, *DEV) for text in (p.prompt, *p.meta["solution"])]
    config = configuration.parse(configuration.merge(dataclasses.asdict(config), {
        "generate": {"max_new_tokens": 24},
        "evaluate": {"samples": 2, "best_of": [1, 2]}}), "test")
    encoder = Encoder(train_tokenizer(texts), config.encoder)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(encoder.tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=encoder.pad_id, eos_token_id=encoder.eos_id))
    base = io.inputs["models"] / "policy"
    for folder in (base, io.inputs["policy"]):
        model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
    for kind, name in (("process", "prm"), ("outcome", "orm")):
        reward = KINDS[kind].from_backbone(str(base), surprisal=True, encoder=dataclasses.asdict(config.encoder),
                                           dtype="float32", device="cpu")
        save_reward_model(reward, encoder, Calibrator("identity", 0), io.inputs[name])
    stage.run(config, io)
    table = store.read_json(io.outputs["metrics"])
    assert table["test/policy_base/n_chains"] == 8
    assert table["test/policy_base/pass_at_1"] == 0
    # Both reward models are on one backbone, and shared its pass; two passes say the same.
    scored = [record for _, record in store.read_json_lines(io.outputs["scores"])]
    assert (io.work / "test-base-both").is_dir()
    shutil.rmtree(io.work)
    monkeypatch.setattr("prm_core.scoring.scorer.RewardScorer.shares_pass", lambda self, other: False)
    stage.run(config, io)
    assert (io.work / "test-base-orm").is_dir()
    assert [record for _, record in store.read_json_lines(io.outputs["scores"])] == scored
    assert table["test/prm/latency_ms_per_step"] > 0
    json.dumps(table, allow_nan=False)
    from prm_core.platform.tracking import connect, experiment_id

    client = connect(tmp_path)
    _, run = client.search_runs([experiment_id(client, tmp_path)])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/n_problems"] == 4
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"plots", "report.html"}


def test_workers_of_a_cluster_sample_and_score_the_same(world, config, tmp_path):
    here, there = make_io(tmp_path / "here"), make_io(tmp_path / "there")
    stage.run(config, here)
    ray = fake_ray.FakeRay(lambda worker, method, arguments: method == "do" and worker == 0, seed=3)
    with fake_ray.installed(ray):
        stage.run(replace(config, workers=WorkersConfig(runner="ray", count=3)), there)
    assert ray.done
    for name in ("trajectories", "scores"):
        first, second = (sorted(io.outputs[name].rglob("*")) or [io.outputs[name]] for io in (here, there))
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second], name


def test_methods_that_search_are_compared_at_equal_tokens(world, config, tmp_path, monkeypatch):
    asked = []

    def search_all(method, problems, tools, seed, who):
        asked.append((method, [problem.id for problem in problems], tools.settings, seed, who))
        return [Found(Trajectory(f"search/{problem.id}/0", problem.id, "p", (), None, index % 2 == 0, 0), 0.5, 1,
                      Meter(generated=100 + index)) for index, problem in enumerate(problems)]

    monkeypatch.setattr("prm_core.search.methods.search_all", search_all)
    monkeypatch.setattr(fakes.FakePolicy, "encoder", None, raising=False)
    config = replace(config, evaluate=replace(config.evaluate, search=["step_best_of_n"]))
    io = make_io(tmp_path)
    stage.run(config, io)
    assert asked == [("step_best_of_n", [problem.id for problem in TEST], config.search, config.seed, config.workers)]
    saved = store.read_json(io.outputs["searches"])
    assert [row["n"] for row in saved if row["method"] == "weighted_majority"] == config.evaluate.best_of
    rows = {row["method"]: row for row in saved if row["n"] in (8, None) and row["method"] != "weighted_majority"}
    assert set(rows) == {"majority", "orm_best_of_n", "prm_best_of_n", "combined_best_of_n", "step_best_of_n"}
    assert (rows["step_best_of_n"]["tokens"], rows["step_best_of_n"]["accuracy"]["value"]) == (114.5, 0.5)
    # As many chains, as many tokens: the rival at its own N.
    table = store.read_json(io.outputs["metrics"])
    for method in ("orm_best_of_n", "prm_best_of_n"):
        assert rows[method]["rival"]["value"] == pytest.approx(table["test/weighted_majority/accuracy_at_8"])
        assert table[f"test/search/{method}/accuracy"] == pytest.approx(table[f"test/{method}/accuracy_at_8"])
    assert stage.render_again(config, tmp_path) == io.outputs["report"].read_text()


def test_with_rules_each_method_has_its_violations_beside_its_accuracy(world, config, tmp_path, monkeypatch):
    held_to = []

    def search_all(method, problems, tools, seed, who):
        held_to.append(tools.overseer.constitution.path)
        return [Found(Trajectory(f"search/{problem.id}/0", problem.id, "p", (Step("7" if index % 3 else "6"),), None,
                                 True, 0), 0.5, 1, Meter(generated=100)) for index, problem in enumerate(problems)]

    monkeypatch.setattr("prm_core.search.methods.search_all", search_all)
    monkeypatch.setattr(fakes.FakePolicy, "encoder", None, raising=False)
    io = make_io(tmp_path)
    path = tmp_path / "rules.yaml"
    path.write_text("rules: [{id: no-seven, text: No seven., severity: low, predicate: 'contains(text, \"7\")', "
                    "wrong: ['7']}]")
    config = replace(config, evaluate=replace(config.evaluate, search=["step_best_of_n"]),
                     rules=replace(config.rules, file="rules.yaml", version=load(path).version))
    stage.run(config, io)
    assert held_to == [path]
    rows = {(row["method"], row["n"]): row for row in store.read_json(io.outputs["searches"])}
    table = store.read_json(io.outputs["metrics"])
    assert rows["step_best_of_n", None]["violations"]["value"] == pytest.approx(2 / 3)
    assert table["test/search/step_best_of_n/violations"] == pytest.approx(2 / 3)
    assert table["test/search/step_best_of_n/accuracy"] == 1.0
    assert 0 < table["test/policy_base/violations"] < 1
    # Of one chain there is no choice, whether it states an answer or not.
    for method in ("majority", "weighted_majority", "orm_best_of_n", "prm_best_of_n", "combined_best_of_n"):
        assert rows[method, 1]["violations"]["value"] == pytest.approx(table["test/policy_base/violations"])
    for method in ("prm_best_of_n", "ruled_best_of_n"):
        for n in config.evaluate.best_of:
            assert rows[method, n]["violations"]["value"] == pytest.approx(table[f"test/{method}/violations_at_{n}"])
            assert rows[method, n]["accuracy"]["value"] == pytest.approx(table[f"test/{method}/accuracy_at_{n}"])
            assert rows[method, n]["tokens"] == rows["prm_best_of_n", n]["tokens"]
    assert rows["ruled_best_of_n", 8]["violations"]["value"] < rows["prm_best_of_n", 8]["violations"]["value"]
    page = io.outputs["report"].read_text()
    assert "breaks a rule, %" in page
    assert stage.render_again(config, tmp_path) == page


def test_a_search_that_the_environment_does_not_let_work_is_refused_before_the_run(config):
    changed = replace(config, domain="errands", evaluate=replace(config.evaluate, search=["beam"]))
    with pytest.raises(InputError, match="the search method beam goes back"):
        stage.check(changed)

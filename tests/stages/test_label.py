"""The label and generate stages on tiny models: every step labelled once a strategy, resumption, failures counted."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from prm_core.config import WorkersConfig
from prm_core.errors import GateError, InputError
from prm_core.evaluation.report.tree_drawing import tree_section
from prm_core.labeling.strategies.base import FAILED, Chain, check_failures
from prm_core.labeling.strategies.mcts import MctsLabeler
from prm_core.labeling.strategies.rollout import RolloutLabeler
from prm_core.labeling.strategies.tree import from_record, preferences
from prm_core.platform import store, workers
from prm_core.sampling.policy import Policy, load_policy
from prm_core.stages import base, generate, label
from prm_core.stages.base import StageIO
from prm_core.training.examples import build_pairs, encode_pairs
from prm_core.types import StepLabel, StepPreference, Trajectory
from tests.builders import completions_server, errands, fake_ray, tiny
from tests.builders.quality import Tracked, make_config

STRATEGIES = ["rollout", "mc_dropout", "mcts", "verifier"]
CHAINS = 10


@pytest.fixture(scope="module", autouse=True)
def tracked():
    """What stages tell their MLflow runs."""
    stands_in = Tracked()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prm_core.platform.tracking.stage_run", stands_in.stage_run)
        yield stands_in


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("policy", "backbone")):
        tiny.save_policy(folder / name, seed)
    return folder


def configure(models, **changes):
    labels = {
        "strategies": STRATEGIES, "rollout": {"rollouts": 2, "rule": "any", "decided": 0.95, "max_tokens": 0},
        "mc_dropout": {"samples": 2, "fit_chains": 20, "batch_size": 8, "measure": "predictive"},
        "mcts": {"problems": 3, "simulations": 2, "rollouts": 4, "selection": "ucb1", "preference_confidence": 0.6},
        "merge": "vote", "max_failed_share": 0.25,
        "max_new_tokens": 6, "batch_size": 64, "shard_size": 4, **changes,
    }
    return make_config(
        label=labels, generate={"problems": 5, "samples": 2, "max_new_tokens": 6, "batch_size": 8, "shard_size": 2},
        models={"policy": str(models / "policy"), "reward_backbone": str(models / "backbone")},
    )


def workspace(root, models):
    """Ten generated chains, every second one wrong, and two human-labelled ones of a problem of their own."""
    problems = [tiny.mia(f"p{n}") for n in range(5)]
    store.write_jsonl(root / "data/train.jsonl", problems)
    chains = [tiny.chain(tiny.WRONG if n % 2 else tiny.RIGHT, problems[n // 2], f"gen-{n}") for n in range(CHAINS)]
    store.write_shard(root / "artifacts/generate/trajectories", 0, Trajectory, [c.trajectory for c in chains[:6]])
    store.write_shard(root / "artifacts/generate/trajectories", 1, Trajectory, [c.trajectory for c in chains[6:]])
    own = tiny.mia("h0")
    human = [tiny.chain(texts, own, f"human-{n}").trajectory for n, texts in enumerate((tiny.RIGHT[:2], tiny.WRONG))]
    store.write_jsonl(root / "data/human/problems.jsonl", [own])
    store.write_jsonl(root / "data/human/trajectories.jsonl", human)
    store.write_jsonl(root / "data/human/labels.jsonl", [
        StepLabel(t.id, i, "human:ann", 1.0, True, 1.0, 0, "") for t in human for i in range(len(t.steps))])
    return root


def run(stage, root, config, work="work"):
    outputs = {name: root / work / path for name, path in stage.outputs.items()}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    (root / work / "kept").mkdir(exist_ok=True)
    io = StageIO({name: root / path for name, path in stage.inputs.items()}, outputs, root / work / "kept", root)
    stage.run(config, io)
    return io.outputs


def all_steps():
    return [(f"gen-{n}", i) for n in range(CHAINS) for i in range(3)] + [
        ("human-0", 0), ("human-0", 1), ("human-1", 0), ("human-1", 1), ("human-1", 2)]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def labelled(models, tmp_path_factory):
    """An undisturbed run: its workspace and outputs."""
    root = workspace(tmp_path_factory.mktemp("workspace"), models)
    return root, run(label.STAGE, root, configure(models))


def test_every_strategy_labels_every_step_once_generated_and_human_alike(labelled, tracked):
    assert tracked.metrics == store.read_json(labelled[1]["metrics"])
    labels = store.read_shards(StepLabel, labelled[1]["labels"])

    for name in ("rollout", "mc_dropout", "verifier"):
        assert [(row.trajectory_id, row.step_index) for row in labels if row.strategy == name] == all_steps()
    # Trees are costly: only the first questions get one.
    assert {row.trajectory_id for row in labels if row.strategy == "mcts"} == {f"gen-{n}" for n in range(6)}
    assert {row.strategy for row in labels} == set(STRATEGIES)
    assert not any(row.reasoning.startswith(FAILED) for row in labels)
    # The tiny policy never gets there: `any` blames the first step of every chain.
    first = {row.trajectory_id: row for row in labels if (row.strategy, row.step_index) == ("rollout", 0)}
    assert {row.is_correct for row in first.values()} == {False}
    said = [row for row in labels if (row.strategy, row.trajectory_id) == ("verifier", "gen-1")]
    assert [row.is_correct for row in said] == [False, True, None]


def test_every_label_says_what_made_it(labelled):
    labels = store.read_shards(StepLabel, labelled[1]["labels"])
    made = [(row, json.loads(row.lineage)) for row in labels]

    assert {(row.strategy, by["strategy"]) for row, by in made} == {
        ("rollout", "rollout@3"), ("mc_dropout", "mc_dropout@4"), ("mcts", "mcts@2"), ("verifier", "verifier@2")}
    models = {name: {by["model"] for row, by in made if row.strategy == name} for name in STRATEGIES}
    assert models["rollout"] == models["mcts"] != models["mc_dropout"]
    assert models["verifier"] == {""}
    assert all(len(found) == 1 for found in models.values())
    # A seed for each shard and strategy.
    seeds = {name: {by["seed"] for row, by in made if row.strategy == name} for name in STRATEGIES}
    assert len(seeds["rollout"]) == len(seeds["mc_dropout"]) == 4
    assert seeds["rollout"].isdisjoint(seeds["mc_dropout"])
    merged = store.read_shards(StepLabel, labelled[1]["merged"])
    assert {json.loads(row.lineage)["strategy"] for row in merged} == {"merged@3"}


def test_trees_and_preferences_come_out_beside_the_labels(labelled):
    outputs = labelled[1]
    found = sorted(outputs["evidence"].glob("trees-*.jsonl"))
    records = [record for path in found for _, record in store.read_json_lines(path)]

    # Shards without a chosen question have no file.
    assert [path.name for path in found] == ["trees-00000.jsonl", "trees-00001.jsonl"]
    assert [record["problem_id"] for record in records] == ["p0", "p1", "p2"]
    assert [record["nodes"][0]["chains"] for record in records] == [
        ["gen-0", "gen-1"], ["gen-2", "gen-3"], ["gen-4", "gen-5"]]
    assert {record["selection"] for record in records} == {"ucb1"}
    # All that the trees cost is on the labels.
    labels = store.read_shards(StepLabel, outputs["labels"])
    spent = sum(node["tokens"] for record in records for node in record["nodes"])
    assert spent == sum(row.tokens for row in labels if row.strategy == "mcts") > 0
    pairs = store.read_shards(StepPreference, outputs["preferences"])
    assert pairs == [pair for record in records for pair in preferences(from_record(record), 0.6)]
    assert store.read_json(outputs["metrics"])["train/preferences"] == len(pairs)


def test_preferences_are_those_of_the_trees(labelled, models, monkeypatch):
    """A policy that mostly gets there, unless the first step is wrong."""
    def script(steps, number):
        return (tiny.WRONG if steps[:1] == tiny.WRONG[:1] else tiny.RIGHT)[len(steps) :], True

    monkeypatch.setattr("prm_core.sampling.policy.load_policy", lambda *args: tiny.ScriptedPolicy(script))

    outputs = run(label.STAGE, labelled[0], configure(
        models, strategies=["mcts"], merge="mcts", mcts={"problems": 3, "selection": "ucb1", "simulations": 6,
                                                         "rollouts": 4, "exploration": 5.0}), "preferred")

    pairs = store.read_shards(StepPreference, outputs["preferences"])
    assert [(pair.problem_id, pair.steps, pair.chosen.text, pair.rejected.text) for pair in pairs] == [
        (f"p{n}", (), tiny.RIGHT[0], tiny.WRONG[0]) for n in range(3)]
    assert all((pair.chosen_value, pair.rejected_value, pair.rejected_rollouts) == (1.0, 0.0, 4) for pair in pairs)
    assert store.read_json(outputs["metrics"])["train/preferences"] == 3
    merged = {(row.trajectory_id, row.step_index): row.is_correct for row in store.read_shards(
        StepLabel, outputs["merged"])}
    assert [merged["gen-0", index] for index in range(3)] == [True, True, True]
    assert [merged["gen-1", index] for index in range(3)] == [False, None, None]
    assert merged["gen-9", 0] is None


def test_where_an_environment_replies_trees_of_turns_come_through_to_training_and_the_report(
        models, tmp_path, monkeypatch):
    problem = errands.solved()
    policy = errands.TeamPolicy([problem], 0.0)
    monkeypatch.setattr("prm_core.sampling.policy.load_policy", lambda *args: policy)
    store.write_jsonl(tmp_path / "data/train.jsonl", [problem])
    runs = {name: errands.trajectory(problem, getattr(errands, name), name, "team") for name in ("WORKED", "SPOILT")}
    store.write_shard(tmp_path / "artifacts/generate/trajectories", 0, Trajectory, runs.values())
    config = dataclasses.replace(configure(
        models, strategies=["mcts"], merge="mcts", mcts={"problems": 1, "simulations": 0, "selection": "omega",
                                                         "rollouts": 8, "preference_confidence": 0.9}),
        domain="errands")
    base.check(config)

    outputs = run(label.STAGE, tmp_path, config)

    merged = [row.is_correct for row in store.read_shards(StepLabel, outputs["merged"])]
    assert merged == [*[True] * 8, *[True] * 4, False, *[None] * 3]
    pairs = store.read_shards(StepPreference, outputs["preferences"])
    right, wrong = (trajectory.steps for trajectory in runs.values())
    assert [(pair.steps, pair.chosen, pair.rejected) for pair in pairs] == [(right[:4], right[4], wrong[4])]
    # What a reward model compares: 4 boxes against 5, each with the turn's reply, behind the same four turns.
    [pair], lost = encode_pairs(policy.encoder, build_pairs({"p": problem}, pairs), 600)
    assert (lost, [policy.encoder.decode(side.ids) for side in (pair.chosen, pair.rejected)]) == (
        0, [(problem.prompt, steps[:5]) for steps in (right, wrong)])
    [drawing] = tree_section(outputs["evidence"]).drawings
    assert 'pack {&#34;pieces&#34;: 24, &#34;box&#34;: 5} → 5 boxes: 0 of 8 rollouts end right' in drawing.svg


def test_merged_labels_cover_every_step_once(labelled):
    merged = store.read_shards(StepLabel, labelled[1]["merged"])

    assert [(row.trajectory_id, row.step_index) for row in merged] == all_steps()
    assert {row.strategy for row in merged} == {"merged"}
    assert all(row.confidence == 0.0 for row in merged if row.is_correct is None)
    assert any(row.is_correct for row in merged)
    assert any(row.is_correct is False for row in merged)


def test_the_figures_are_those_of_the_labels(labelled):
    figures = store.read_json(labelled[1]["metrics"])
    labels = store.read_shards(StepLabel, labelled[1]["labels"])

    assert figures["train/merged/steps"] == len(all_steps())
    for name in STRATEGIES:
        rows = [row for row in labels if row.strategy == name]
        decided = [row for row in rows if row.is_correct is not None]
        assert figures[f"train/{name}/coverage"] == len(decided) / len(all_steps())
        assert figures[f"train/{name}/tokens_per_step"] == sum(row.tokens for row in rows) / len(all_steps())
        assert figures[f"train/{name}/failed_chains"] == 0
    assert figures["train/rollout/tokens_per_step"] > 0
    assert figures["train/mc_dropout/tokens_per_step"] == 0


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_labels(labelled, models, monkeypatch):
    root, undisturbed = labelled
    genuine = RolloutLabeler.label
    calls = []

    def killed(self, chains, seed):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return genuine(self, chains, seed)

    monkeypatch.setattr(RolloutLabeler, "label", killed)
    with pytest.raises(KeyboardInterrupt):
        run(label.STAGE, root, configure(models), "resumed")
    assert len(list((root / "resumed" / "kept" / "labels").glob("part-*"))) == 1
    assert not (root / "resumed" / label.STAGE.outputs["labels"]).exists()
    again = run(label.STAGE, root, configure(models), "resumed")

    # Four shards of rollouts, one of them from before.
    assert len(calls) == 2 + 3
    for name in ("labels", "merged"):
        assert store.read_shards(StepLabel, again[name]) == store.read_shards(StepLabel, undisturbed[name])
    assert files(again["evidence"]) == files(undisturbed["evidence"])
    assert store.read_json(again["metrics"]) == store.read_json(undisturbed["metrics"])


def test_workers_of_a_cluster_write_the_same_evidence_too_and_lose_nothing_when_one_is_lost(labelled, models):
    root, undisturbed = labelled
    lost = []

    def dies(worker, method, arguments):
        """Each shard's first worker, once it has the work."""
        if method == "do" and arguments[-1] not in lost:
            lost.append(arguments[-1])
            return True
        return False

    config = dataclasses.replace(configure(models), workers=WorkersConfig(runner="ray", count=2, retries=1))
    with fake_ray.installed(ray := fake_ray.FakeRay(dies)):
        found = run(label.STAGE, root, config, "on-ray")
    for name in ("labels", "evidence", "merged", "preferences"):
        assert files(found[name]) == files(undisturbed[name]), name
    # Four strategies, each with its shards; of each number one worker was lost.
    assert len(ray.workers) == 2 + len(lost)
    assert len(ray.done) == len(files(found["labels"]))


@pytest.mark.parametrize("moment", ["while searching", "before the evidence", "before the labels"])
def test_evidence_and_labels_of_a_killed_search_belong_together(labelled, models, monkeypatch, moment):
    """Killed in the second shard that has trees: what is there then is labels with their trees, never without."""
    root, undisturbed = labelled
    owner, name = {"while searching": (MctsLabeler, "_read"), "before the evidence": (MctsLabeler, "keep_evidence"),
                   "before the labels": (store, "write_shard")}[moment]
    genuine, work = getattr(owner, name), root / moment.replace(" ", "-")

    def killed(*args):
        if (work / "kept/evidence/trees-00000.jsonl").exists() and (
                moment != "before the labels" or (work / "kept/evidence/trees-00001.jsonl").exists()):
            raise KeyboardInterrupt
        return genuine(*args)

    # The seed of a shard does not depend on the other strategies.
    config = configure(models, strategies=["mcts"], merge="mcts")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            run(label.STAGE, root, config, work.name)
    kept = [path.name for path in (work / "kept/labels").glob("part-*")]
    assert kept == ["part-00000.parquet"]
    again = run(label.STAGE, root, config, work.name)

    assert files(again["evidence"]) == files(undisturbed["evidence"])
    expected = [row for row in store.read_shards(StepLabel, undisturbed["labels"]) if row.strategy == "mcts"]
    assert store.read_shards(StepLabel, again["labels"]) == expected


def test_all_chains_of_a_question_are_in_one_shard():
    rows = [("a", 0), ("b", 0), ("a", 1), ("c", 0), ("c", 1), ("c", 2), ("b", 1), ("d", 0)]
    chains = [Chain(tiny.mia(name), tiny.chain(tiny.RIGHT, tiny.mia(name), f"{name}{n}").trajectory)
              for name, n in rows]

    def shards(size):
        return [[chain.trajectory.id for chain in shard] for shard in label.whole_questions(chains, size)]

    assert shards(4) == [["a0", "a1", "b0", "b1"], ["c0", "c1", "c2", "d0"]]
    assert shards(3) == [["a0", "a1"], ["b0", "b1"], ["c0", "c1", "c2"], ["d0"]]
    # A question with more chains than a shard should have is a shard of its own.
    assert shards(1) == [["a0", "a1"], ["b0", "b1"], ["c0", "c1", "c2"], ["d0"]]
    # Two workers can share out what one shard could hold.
    assert shards(100) == [["a0", "a1", "b0", "b1"], ["c0", "c1", "c2", "d0"]]


def on_a_core_of_its_own(work):
    here = os.getpid()

    def checked(*args, **kwargs):
        assert os.getpid() != here
        return work(*args, **kwargs)

    return checked


def fail_on(*ids):
    genuine = RolloutLabeler.label

    def failing(self, chains, seed):
        for chain in chains:
            if chain.trajectory.id in ids:
                raise ZeroDivisionError(f"no value for {chain.trajectory.id}")
        return genuine(self, chains, seed)

    return failing


def test_chains_a_strategy_fails_on_are_counted_and_the_rest_labelled(labelled, models, monkeypatch):
    monkeypatch.setattr(RolloutLabeler, "label", fail_on("gen-1", "human-0"))

    outputs = run(label.STAGE, labelled[0], configure(models), "failing")

    assert store.read_json(outputs["metrics"])["train/rollout/failed_chains"] == 2
    labels = store.read_shards(StepLabel, outputs["labels"])
    rollout = {(row.trajectory_id, row.step_index): row for row in labels if row.strategy == "rollout"}
    assert list(rollout) == all_steps()
    assert rollout["gen-1", 0].reasoning == "failed: no value for gen-1"
    assert {key[0] for key, row in rollout.items() if row.reasoning.startswith(FAILED)} == {"gen-1", "human-0"}
    merged = {(row.trajectory_id, row.step_index): row for row in store.read_shards(StepLabel, outputs["merged"])}
    # The other strategies still speak of them, a failure has no vote.
    assert "rollout says" not in merged["gen-1", 0].reasoning
    assert "rollout says" in merged["gen-0", 0].reasoning
    assert store.read_json(outputs["metrics"])["train/verifier/failed_chains"] == 0


def test_a_strategy_that_fails_on_too_many_chains_stops_the_chain(labelled, models, monkeypatch):
    """The guide swallows what a strategy raises (METHODS 1)."""
    root = labelled[0]
    monkeypatch.setattr(RolloutLabeler, "label", fail_on(*(f"gen-{n}" for n in range(4))))

    with pytest.raises(GateError, match=r"labelling strategy rollout failed on 4 of 12 chains, more than "
                                        r"label\.max_failed_share 0\.25"):
        run(label.STAGE, root, configure(models), "broken")

    assert not (root / "broken" / label.STAGE.outputs["labels"]).exists()
    assert not (root / "broken" / label.STAGE.outputs["metrics"]).exists()


@pytest.mark.parametrize(("failed", "share", "stops"), [
    (1, 0.1, False), (2, 0.1, True), (1, 0.0, True), (0, 0.0, False),
])
def test_the_bound_on_failures_is_a_share_of_all_chains(failed, share, stops):
    rows = [StepLabel(f"t{n}", i, "mcts", None, None, 0.0, 0, f"{FAILED}x") for n in range(failed) for i in range(5)]
    if stops:
        with pytest.raises(GateError, match=f"mcts failed on {failed} of 10 chains"):
            check_failures(rows, ["rollout", "mcts"], 10, share)
    else:
        assert check_failures(rows, ["rollout", "mcts"], 10, share) == {"rollout": 0, "mcts": failed}


@pytest.mark.parametrize(("changes", "reason"), [
    ({"rollout": {"rule": "most"}}, "unknown verdict rule 'most'"),
    ({"mcts": {"selection": "best"}}, "unknown selection rule of the tree search 'best'"),
    ({"mc_dropout": {"measure": "variance"}}, "unknown uncertainty measure 'variance'"),
    ({"merge": "average"}, "unknown way to merge labels 'average'"),
    ({"strategies": ["guess"]}, "unknown labelling strategy 'guess'; known: .*mcts, .*rollout"),
])
def test_a_misspelt_name_is_refused_with_the_configuration(models, changes, reason):
    """Before a chain starts: not after the stages and strategies before it have worked for an hour."""
    with pytest.raises(InputError, match=reason):
        base.check(configure(models, **changes))


def test_an_abstention_bound_of_an_unknown_strategy_is_refused(models):
    config = configure(models)
    bounds = dataclasses.replace(config.validate, max_abstention={"rolout": 0.5})

    with pytest.raises(InputError, match="unknown labelling strategy 'rolout'"):
        label.check(dataclasses.replace(config, validate=bounds))


def test_a_strategy_left_out_is_not_run(labelled, models, monkeypatch):
    monkeypatch.setattr(MctsLabeler, "__init__", lambda *args: pytest.fail("made a strategy that is not configured"))

    outputs = run(label.STAGE, labelled[0], configure(models, strategies=["rollout"], merge="rollout"), "one")

    labels, merged = (store.read_shards(StepLabel, outputs[name]) for name in ("labels", "merged"))
    assert {row.strategy for row in labels} == {"rollout"}
    assert [dataclasses.replace(row, strategy="merged", reasoning=f"rollout: {row.reasoning}", lineage="")
            for row in labels] == [dataclasses.replace(row, lineage="") for row in merged]
    assert store.read_shards(StepPreference, outputs["preferences"]) == []
    assert files(outputs["evidence"]) == {}


def test_a_chain_whose_problem_is_gone_is_named(tmp_path, models):
    root = workspace(tmp_path, models)
    store.write_jsonl(root / "data/train.jsonl", [tiny.mia(f"p{n}") for n in range(4)])

    with pytest.raises(InputError, match="trajectory gen-8 is of problem p4, which is neither in"):
        run(label.STAGE, root, configure(models))


# --- generate -------------------------------------------------------------------------------------------------------


def test_generated_shards_resume_to_the_same_chains(labelled, models):
    root, config = labelled[0], configure(models)
    first = run(generate.STAGE, root, config, "generate")
    chains = store.read_shards(Trajectory, first["trajectories"])
    (root / "half" / "kept").mkdir(parents=True)
    # A shard from before the kill, marked, and one that was being written.
    kept = store.read_shards(Trajectory, root / "generate" / "kept")[:2]
    marked = [dataclasses.replace(row, policy="from before") for row in kept]
    store.write_shard(root / "half" / "kept", 0, Trajectory, marked)
    store.shard_path(root / "half" / "kept", 1).with_name(".part-00001.parquet.tmp").write_bytes(b"half")

    second = store.read_shards(Trajectory, run(generate.STAGE, root, config, "half")["trajectories"])

    by_id = {chain.id: chain for chain in chains}
    assert [row.policy for row in second if row.policy == "from before"] == ["from before"] * 2
    rest = [row for row in second if row.policy != "from before"]
    assert rest == [by_id[row.id] for row in rest]
    # Seeds differ by shard, so shards are no copies of each other.
    assert len({chain.seed for chain in chains}) == 4
    assert not list((root / "half").rglob("*.tmp"))


def test_workers_give_what_one_process_gives(labelled, models, monkeypatch):
    root, alone = labelled
    generated = run(generate.STAGE, root, configure(models), "alone")
    monkeypatch.setattr(workers, "cores", lambda: 2)
    monkeypatch.setattr(RolloutLabeler, "label", on_a_core_of_its_own(RolloutLabeler.label))
    monkeypatch.setattr(Policy, "sample", on_a_core_of_its_own(Policy.sample))
    outputs = run(label.STAGE, root, configure(models), "shared")
    for name in ("labels", "merged", "evidence", "preferences"):
        assert files(outputs[name]) == files(alone[name])
    assert store.read_json(outputs["metrics"]) == store.read_json(alone["metrics"])
    chains = run(generate.STAGE, root, configure(models), "shared-chains")["trajectories"]
    assert files(chains) == files(generated["trajectories"])


def test_generated_chains_are_counted(labelled, models):
    root = labelled[0]
    outputs = run(generate.STAGE, root, configure(models), "counted")
    chains, figures = store.read_shards(Trajectory, outputs["trajectories"]), store.read_json(outputs["metrics"])

    assert figures["train/problems"] == 5
    assert figures["train/trajectories"] == len(chains)
    assert figures["train/policy_base/dropped_empty"] == 10 - len(chains)
    assert figures["train/policy_base/unanswered_share"] == sum(c.answer is None for c in chains) / len(chains)
    assert {chain.problem_id for chain in chains} <= {f"p{n}" for n in range(5)}
    assert len({chain.id for chain in chains}) == len(chains)


def at_a_server(config, url, **changes):
    """The configuration with a server, greedy where it generates."""
    return dataclasses.replace(
        config, generate=dataclasses.replace(config.generate, temperature=0.0), sampling=dataclasses.replace(
            config.sampling, backend="server", endpoint=url, model=completions_server.NAME, **changes))


def test_stages_sample_at_a_server_by_configuration(labelled, models):
    root, config = labelled[0], configure(models, strategies=["rollout", "mcts"])
    policy = load_policy(str(models / "policy"), config)
    here = run(generate.STAGE, root, at_a_server(config, "http://nowhere.invalid/v1", stages=["label"]), "greedy-here")
    with completions_server.serving(policy) as server:
        given = at_a_server(config, server.url)
        there = run(generate.STAGE, root, given, "greedy-there")
        asked = len(server.bodies)
        labels = run(label.STAGE, root, given, "labelled-there")
        label_asked = len(server.bodies) - asked

    assert store.read_shards(Trajectory, there["trajectories"]) == store.read_shards(Trajectory, here["trajectories"])
    figures = store.read_json(there["metrics"])
    assert figures["train/sampling/requests"] == asked > 5
    assert figures["train/sampling/completion_tokens"] > 10
    assert "train/sampling/requests" not in store.read_json(here["metrics"])
    assert store.read_json(labels["metrics"])["train/label_sampling/requests"] == label_asked > 5
    rows = store.read_shards(StepLabel, labels["labels"])
    assert {(row.trajectory_id, row.step_index) for row in rows if row.strategy == "rollout"} == set(all_steps())


def test_a_server_without_the_policy_leaves_no_shard(labelled, models):
    root, config = labelled[0], configure(models)
    with (completions_server.serving(tiny.make_policy(7)) as server,
          pytest.raises(InputError, match="does not sample from the policy")):
        run(generate.STAGE, root, at_a_server(config, server.url), "other")
    assert list((root / "other" / "kept").iterdir()) == []


def test_a_server_that_dies_half_way_leaves_whole_shards_and_the_rest_is_asked_for_later(labelled, models):
    def dying(answer, body, before):
        return answer if before < 12 else (503, {"error": "shutting down"})

    root, config = labelled[0], configure(models)
    policy = load_policy(str(models / "policy"), config)
    with completions_server.serving(policy, spoil=dying) as server:
        given = at_a_server(config, server.url, retries=0, concurrency=1)
        with pytest.raises(InputError, match=r"gave no answer: the server answers 503: .*shutting down"):
            run(generate.STAGE, root, given, "dying")
    left = files(root / "dying" / "kept")
    with completions_server.serving(policy) as server:
        given = dataclasses.replace(given, sampling=dataclasses.replace(given.sampling, endpoint=server.url))
        whole = run(generate.STAGE, root, given, "whole")
        asked = len(server.bodies)
        later = run(generate.STAGE, root, given, "dying")
        rest = len(server.bodies) - asked

    assert 0 < len(left) < len(files(whole["trajectories"]))
    assert rest < asked
    found = files(later["trajectories"])
    assert found == files(whole["trajectories"])
    assert left.items() <= found.items()


def test_a_policy_that_writes_nothing_is_an_error_that_says_so(labelled, models, monkeypatch):
    monkeypatch.setattr("prm_core.sampling.policy.load_policy",
                        lambda *args: tiny.ScriptedPolicy(lambda steps, number: ((), True)))

    with pytest.raises(GateError, match="wrote no step for any of 5 problems"):
        run(generate.STAGE, labelled[0], configure(models), "silent")

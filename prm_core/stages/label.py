"""Stage label: every configured strategy labels every chain, shard by shard; then the strategies are merged."""

from __future__ import annotations

import bisect
import logging
import random
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.platform import shards, store, workers
from prm_core.stages.base import Stage, StageIO, model_path
from prm_core.types import Problem, StepLabel, StepPreference, Trajectory

if TYPE_CHECKING:
    from prm_core.labeling.strategies import Chain, LabelingTools, Strategy

log = logging.getLogger(__name__)
ROWS_PER_SHARD = 10_000
EVIDENCE, LABELS = "evidence", "labels"


def run(config: Config, io: StageIO) -> None:
    """Writes the labels of each strategy and the merged ones, for generated and human-labelled chains alike, what
    strategies found out beside (search trees, what a judge cost), and step preferences from the trees.

    Raises GateError when a strategy fails on more than `label.max_failed_share` of the chains.
    """
    from prm_core.platform.tracking import stage_run

    with stage_run(io.workspace, "label", config, io.inputs) as tracked:
        metrics = _label_and_merge(config, io)
        tracked.log_metrics(metrics)
    store.write_json(io.outputs["metrics"], metrics)


def _label_and_merge(config: Config, io: StageIO) -> dict[str, float]:
    """Writes everything but the figures, and returns those."""
    from prm_core.labeling.merging.merge import merge_labels
    from prm_core.labeling.strategies import STRATEGIES, Chain, check_failures
    from prm_core.labeling.summary import summarise

    own = {trajectory.id for trajectory in store.read_shards(Trajectory, io.inputs["trajectories"])}
    chains = [Chain(problem, trajectory, trajectory.id in own) for problem, trajectory in load_chains(io)]
    tools = _tools(config, io)
    _label(chains, {name: STRATEGIES[name](tools) for name in config.label.strategies}, config, io.work)
    labels = store.read_shards(StepLabel, io.work / LABELS)
    failed = check_failures(labels, config.label.strategies, len(chains), config.label.max_failed_share)
    merged = merge_labels([chain.trajectory for chain in chains], labels, config.label, own)
    log.info("label error: %s", merged.error or f"{config.label.merge} makes no estimate of it")
    evidence = io.work / EVIDENCE
    evidence.mkdir(exist_ok=True)
    preferences = _preferences(evidence, config.label.mcts.preference_confidence)

    shutil.copytree(io.work / LABELS, io.outputs["labels"])
    shutil.copytree(evidence, io.outputs["evidence"])
    _write_shards(io.outputs["merged"], StepLabel, merged.labels)
    _write_shards(io.outputs["preferences"], StepPreference, preferences)
    return {**summarise(labels, merged, failed), "train/preferences": len(preferences), **_usage(evidence),
            **{f"train/label_sampling/{name}": value for name, value in tools.policy.figures().items()}}


def check(config: Config) -> None:
    """Raises InputError for a strategy, a merge or a rule of the config that is not registered."""
    from prm_core.labeling.merging.merge import find_merge
    from prm_core.labeling.strategies import STRATEGIES
    from prm_core.labeling.strategies.tree import SELECTIONS
    from prm_core.labeling.strategies.uncertainty import MEASURES
    from prm_core.labeling.strategies.verdicts import VERDICTS

    bounds = config.validate.max_abstention
    for name in (*config.label.strategies, *(bounds if isinstance(bounds, dict) else ())):
        _ = STRATEGIES[name]
    find_merge(config.label)
    _ = VERDICTS[config.label.rollout.rule], MEASURES[config.label.mc_dropout.measure]
    _ = SELECTIONS[config.label.mcts.selection]


def _tools(config: Config, io: StageIO) -> LabelingTools:
    """What strategies work with."""
    from prm_core.domains import DOMAINS
    from prm_core.labeling.strategies import LabelingTools
    from prm_core.sampling.backends import policy_for
    from prm_core.sampling.policy import load_policy

    return LabelingTools(
        config,
        DOMAINS,
        policy_for("label", model_path(io.workspace, config.models.policy), config),
        load_policy(model_path(io.workspace, config.models.reward_backbone), config),
        partial(model_path, io.workspace),
    )


def _label(chains: Sequence[Chain], strategies: dict[str, Strategy], config: Config, work: Path) -> None:
    """Labels shard by shard into the work folder; what is there already is not done again."""
    from prm_core.labeling.strategies import label_shard

    groups = whole_questions(chains, config.label.shard_size)
    for position, (name, strategy) in enumerate(strategies.items()):
        first = position * len(groups)
        paths = store.shard_paths(work / LABELS, len(groups), first)

        def label(
            shard: int, name: str = name, strategy: Strategy = strategy
        ) -> tuple[list[StepLabel], dict[str, bytes]]:
            seed = random.Random(f"label/{name}/{config.seed}/{shard}").getrandbits(31)
            rows = label_shard(strategy, name, groups[shard], seed)
            # Of whoever works on another machine, only what is returned arrives.
            with tempfile.TemporaryDirectory() as folder:
                strategy.keep_evidence(Path(folder), shard)
                return rows, {path.name: path.read_bytes() for path in Path(folder).iterdir()}

        def keep(shard: int, found: tuple[list[StepLabel], dict[str, bytes]], first: int = first) -> None:
            rows, evidence = found
            # The evidence first: a shard of labels that exists is never without it.
            for file, content in evidence.items():
                store.write_bytes(work / EVIDENCE / file, content)
            store.write_shard(work / LABELS, first + shard, StepLabel, rows)

        if not all(path.exists() for path in paths):
            strategy.prepare(chains, config.seed)
        shards.fill(paths, label, keep, config.workers, f"label by {name}", alone=not strategy.parallel)


def whole_questions(chains: Sequence[Chain], size: int) -> list[list[Chain]]:
    """Shards of about `size` chains; all chains of a question are in one, since they may share a tree."""
    by_problem: dict[str, list[Chain]] = {}
    for chain in chains:
        by_problem.setdefault(chain.problem.id, []).append(chain)
    ends = [part.stop for part in workers.shards(len(chains), size)]
    groups: list[list[Chain]] = [[] for _ in ends]
    before = 0
    for group in by_problem.values():
        groups[bisect.bisect_right(ends, before)] += group
        before += len(group)
    return [group for group in groups if group]


def _preferences(evidence: Path, confidence: float) -> list[StepPreference]:
    """Step preferences of all search trees."""
    from prm_core.labeling.strategies.tree import from_record, preferences

    return [
        pair for path in sorted(evidence.glob("trees-*.jsonl"))
        for _, record in store.read_json_lines(path) for pair in preferences(from_record(record), confidence)
    ]


def _usage(evidence: Path) -> dict[str, float]:
    """What the judge used, summed over its shards."""
    figures: dict[str, float] = {}
    for path in sorted(evidence.glob("judge-*.json")):
        for name, value in store.read_json(path).items():
            figures[f"train/judge/{name}"] = figures.get(f"train/judge/{name}", 0) + value
    return figures


def _write_shards(folder: Path, kind: type, rows: Sequence[StepLabel] | Sequence[StepPreference]) -> None:
    for index, start in enumerate(range(0, max(len(rows), 1), ROWS_PER_SHARD)):
        store.write_shard(folder, index, kind, rows[start : start + ROWS_PER_SHARD])


def load_chains(io: StageIO) -> list[tuple[Problem, Trajectory]]:
    """Generated chains and human-labelled ones, each with its problem.

    Raises InputError when a chain's problem is not there.
    """
    from prm_core.labeling.human.labels import all_trajectories, read_human

    human = read_human(io.inputs["human"])
    by_id = {p.id: p for p in (*store.read_jsonl(Problem, io.inputs["problems"]), *human.problems)}
    chains = all_trajectories(store.read_shards(Trajectory, io.inputs["trajectories"]), human.trajectories)
    for chain in chains:
        if chain.problem_id not in by_id:
            raise InputError(f"trajectory {chain.id} is of problem {chain.problem_id}, which is neither in "
                             "data/train.jsonl nor in data/human/problems.jsonl; generate again after changing data/")
    return [(by_id[chain.problem_id], chain) for chain in chains]


STAGE = Stage(
    inputs={
        "problems": "data/train.jsonl",
        "human": "data/human",
        "trajectories": "artifacts/generate/trajectories",
        "models": "artifacts/warmup/models",
    },
    outputs={
        "labels": "artifacts/label/labels",
        "merged": "artifacts/label/merged",
        "evidence": "artifacts/label/evidence",
        "preferences": "artifacts/label/preferences",
        "metrics": "artifacts/label/metrics.json",
    },
    params=("seed", "models", "sampling", "encoder", "label"),
    run=run,
    check=check,
)

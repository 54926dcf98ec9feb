"""Stage label: every configured strategy labels every chain, shard by shard; then the strategies are merged."""

from __future__ import annotations

import logging
import random
import shutil

from prm_core import store
from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.stages.base import Stage, StageIO, model_path
from prm_core.types import Problem, StepLabel, Trajectory

log = logging.getLogger(__name__)
MERGED_SHARD = 10_000


def run(config: Config, io: StageIO) -> None:
    """Writes the labels of each strategy and the merged ones, for generated and human-labelled chains alike.

    Raises GateError when a strategy fails on more than `label.max_failed_share` of the chains.
    """
    from prm_core.domains import DOMAINS
    from prm_core.labeling import mc_dropout, mcts, rollout  # noqa: F401  (they register themselves)
    from prm_core.labeling.base import STRATEGIES, Chain, LabelingTools, check_failures, label_shard
    from prm_core.labeling.merge import find_merge, merge_labels
    from prm_core.labeling.summary import summarise
    from prm_core.models.policy import load_policy
    from prm_core.progress import track

    chains = [Chain(problem, trajectory) for problem, trajectory in load_chains(io)]
    tools = LabelingTools(
        config,
        DOMAINS,
        load_policy(model_path(io.workspace, config.models.policy), config),
        load_policy(model_path(io.workspace, config.models.reward_backbone), config),
    )
    # A misspelt rule fails here, not after the strategies before it have done their work.
    strategies = {name: STRATEGIES[name](tools) for name in config.label.strategies}
    find_merge(config.label)
    starts = range(0, len(chains), config.label.shard_size)
    for position, (name, strategy) in enumerate(strategies.items()):
        first = position * len(starts)
        todo = [n for n in range(len(starts)) if not store.shard_path(io.work, first + n).exists()]
        if todo:
            strategy.prepare(chains, config.seed)
        for number in track(todo, f"label by {name}", total=len(starts), done=len(starts) - len(todo), unit="shard"):
            shard = chains[starts[number] : starts[number] + config.label.shard_size]
            seed = random.Random(f"label/{name}/{config.seed}/{number}").getrandbits(31)
            store.write_shard(io.work, first + number, StepLabel, label_shard(strategy, name, shard, seed))
    labels = store.read_shards(StepLabel, io.work)
    failed = check_failures(labels, config.label.strategies, len(chains), config.label.max_failed_share)
    steps = {chain.trajectory.id: len(chain.trajectory.steps) for chain in chains}
    merged = merge_labels(steps, labels, config.label)
    shutil.copytree(io.work, io.outputs["labels"])
    for index, start in enumerate(range(0, len(merged), MERGED_SHARD)):
        store.write_shard(io.outputs["merged"], index, StepLabel, merged[start : start + MERGED_SHARD])
    store.write_json(io.outputs["metrics"], summarise(labels, merged, failed))


def load_chains(io: StageIO) -> list[tuple[Problem, Trajectory]]:
    """Generated chains and human-labelled ones, each with its problem.

    Raises InputError when a chain's problem is not there.
    """
    from prm_core.labeling.human import all_trajectories, read_human

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
        "metrics": "artifacts/label/metrics.json",
    },
    params=("seed", "models", "encoder", "label"),
    run=run,
)

"""Rows of stages from this machine and from Ray with 1, 2 and 3 workers, one of them killed: are they the same?

    python -m benchmarks.ray_shards [--quick] [--seeds 5] --out benchmarks/results/ray_shards.json

Needs Ray (requirements-ray.txt). For each seed the smoke profile's chain up to its PRM; then chains sampled greedily
and at temperature 1, the labels of all strategies with their trees, and the PRM's scores of the chains, each by
processes of this machine, and on a Ray cluster (started here) with 1, 2 and 3 workers, and with 2 of which one is
killed (SIGKILL) as soon as a stage has its first shard. Compared byte for byte, as files.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import Bar, parsed, write
from deploy.ray_cluster import RayCluster, started
from prm_core import config as configuration
from prm_core.config import WorkersConfig
from prm_core.evaluation.judged_chains import Chain, score_with_prm
from prm_core.platform import environment, store
from prm_core.problems.embedded import make_data
from prm_core.scoring.scorer import load_scorer
from prm_core.stages.base import execute
from prm_core.types import Problem, Trajectory

HERE = WorkersConfig()
KILLED = "2 workers, one killed"
BEFORE = ("warmup", "generate", "label", "validate", "validate_gate", "calibrate", "train_prm")
FIRST_SEED = 100
# More shards than workers.
SIZES = {"generate": {"shard_size": 8}, "label": {"shard_size": 12}}
SCORED_TOGETHER = 16


def prepare(folder: Path, seed: int) -> dict[str, Any]:
    """The smoke profile's chain up to its PRM in a new workspace; returns the config's raw values."""
    raw = configuration.merge(configuration.resolve(environment.project_root() / "params.yaml", "smoke"),
                              {"seed": seed, **SIZES})
    folder.mkdir(parents=True)
    configure(folder, raw, HERE)
    make_data(folder / "data", configuration.load(folder))
    for stage in BEFORE:
        execute(stage, folder)
    return raw


def configure(folder: Path, raw: dict[str, Any], who: WorkersConfig, temperature: float = 1.0) -> None:
    values = configuration.merge(raw, {"generate": {"temperature": temperature}, "workers": vars(who)})
    store.write_text(folder / "params.yaml", yaml.safe_dump(values, sort_keys=False))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


def rows(folder: Path, raw: dict[str, Any], who: WorkersConfig) -> dict[str, dict[str, bytes]]:
    """What stages write, worked on so: kind → file → content."""
    found = {}
    for kind, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        configure(folder, raw, who, temperature)
        execute("generate", folder)
        found[kind] = contents(folder / "artifacts/generate/trajectories")
    execute("label", folder)
    found["labels"] = contents(folder / "artifacts/label/labels") | contents(folder / "artifacts/label/evidence")
    problems = store.read_jsonl(Problem, folder / "data/train.jsonl")
    places = {problem.id: place for place, problem in enumerate(problems)}
    trajectories = store.read_shards(Trajectory, folder / "artifacts/generate/trajectories")
    chains = [Chain(places[trajectory.problem_id], trajectory) for trajectory in trajectories]
    with tempfile.TemporaryDirectory() as work:
        score_with_prm(load_scorer(folder / "artifacts/train_prm/prm", device="cpu"), chains, problems, "mean",
                       Path(work) / "scores", SCORED_TOGETHER, who)
        found["scores"] = contents(Path(work))
    return found


@contextmanager
def killing(cluster: RayCluster, folder: Path) -> Iterator[list[str]]:
    """Kills a worker as soon as a stage has its first shard; yields the stages in which one was killed."""
    killed: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            for stage, shards in (("generate", "*/part-*.parquet"), ("label", "*/labels/part-*.parquet")):
                # A stage that ends removes its folders.
                with suppress(FileNotFoundError):
                    begun = any((folder / ".work" / stage).glob(shards))
                    if begun and stage not in killed and (victims := cluster.workers()):
                        victims[0].kill()
                        killed.append(stage)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        stop.set()
        watcher.join()


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> int:
    """Files that are not in both with one content."""
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_shards")
    parser.add_argument("--quick", action="store_true", help="one seed, and 2 workers alone")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parsed(parser)
    environment.apply()
    seeds = range(FIRST_SEED, FIRST_SEED + (1 if given.quick else given.seeds))
    names = ["2 workers", KILLED] if given.quick else ["1 worker", "2 workers", "3 workers", KILLED]
    worst: dict[tuple[str, str], int] = {}
    sizes: dict[str, int] = {}
    kills = 0
    with tempfile.TemporaryDirectory() as folder, started(3) as cluster:
        os.environ.update(cluster.environment)
        ray = WorkersConfig(runner="ray", address=cluster.address)
        # Here first: a process that has joined a cluster has threads, and should not be forked.
        prepared = []
        for seed in seeds:
            workspace = Path(folder) / str(seed)
            raw = prepare(workspace, seed)
            prepared.append((workspace, raw, rows(workspace, raw, HERE)))
        start = time.monotonic()
        for workspace, raw, here in prepared:
            sizes = {kind: sizes.get(kind, 0) + len(files) for kind, files in here.items()}
            for name in names:
                who = replace(ray, count=int(name[0]))
                if name == KILLED:
                    with killing(cluster, workspace) as killed:
                        there = rows(workspace, raw, who)
                    kills += len(killed)
                else:
                    there = rows(workspace, raw, who)
                for kind, files in here.items():
                    worst[kind, name] = max(worst.get((kind, name), 0), differing(files, there[kind]))
        seconds = time.monotonic() - start
    bars = [Bar(f"{kind}: files that differ from this machine's, Ray with {name}, worst of {len(seeds)} seeds", count,
                None, None, "0", count == 0) for (kind, name), count in worst.items()]
    bars.append(Bar("workers that were killed at work", kills, None, None, f"{2 * len(seeds)}",
                    kills == 2 * len(seeds)))
    write(given, bars, seeds=list(seeds), files_compared=sizes, seconds_on_ray=round(seconds, 1))


if __name__ == "__main__":
    main()

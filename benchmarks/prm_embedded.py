"""The embedded domain: a PRM from automatic labels against one from oracle labels, its training time against an ORM's,
and what edited chains cost the two."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.prm_measure import beside
from benchmarks.report import Bar
from prm_core import config as configuration
from prm_core.cli.scoring.adversarial import read_side
from prm_core.config import Config
from prm_core.domains import arithmetic
from prm_core.domains.oracle import ORACLES, first_error
from prm_core.errors import InputError
from prm_core.evaluation import metrics, protocol
from prm_core.evaluation.adversarial.suite import GROUPS, run_adversarial
from prm_core.evaluation.judged_chains import Chain, first_per_problem, judge, score_with_prm
from prm_core.evaluation.metrics import Bootstrap, Estimate, Statistic
from prm_core.platform import store
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.scorer import RewardScorer
from prm_core.training.examples import Example, build_examples
from prm_core.training.reward.recipe import train_on
from prm_core.types import Problem, StepLabel, Trajectory

WITHIN, SLOWER, LOST = 3.0, 1.2, 0.5
LEAST_LOST = 0.001
# An outcome model without the surprisal's term, as the guide has it. Ours, which has it, is the better one.
HIDDEN = "orm_hidden"
ARTIFACTS = ("data/train.jsonl", "data/dev.jsonl", "data/test.jsonl", "artifacts/calibrate/training_set",
             "artifacts/generate/trajectories", "artifacts/warmup/models", "artifacts/evaluate/trajectories")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Workspace:
    """What a finished run of the default profile left."""

    folder: Path
    config: Config
    problems: Mapping[str, list[Problem]]
    trajectories: list[Trajectory]
    labels: list[StepLabel]

    @classmethod
    def read(cls, folder: Path | None) -> Workspace:
        """Raises InputError when the run is not there or not of the embedded domain."""
        missing = [name for name in ARTIFACTS if folder is None or not (folder / name).exists()]
        if folder is None or missing:
            raise InputError(f"--workspace {folder}: no finished run of the default profile there "
                             f"({missing[0]} is missing); run `prm run` first (or `make run`), or name its folder")
        config = configuration.load(folder)
        problems = {split: store.read_jsonl(Problem, folder / f"data/{split}.jsonl")
                    for split in ("train", "dev", "test")}
        if any(problem.domain != arithmetic.NAME for split in problems.values() for problem in split):
            raise InputError(f"--workspace {folder}: its problems are not of the domain {arithmetic.NAME}, whose steps "
                             "an oracle judges; name a workspace of the default profile")
        labels = store.read_shards(StepLabel, folder / "artifacts/calibrate/training_set")
        return cls(folder, config, problems, store.read_shards(Trajectory, folder / "artifacts/generate/trajectories"),
                   labels)

    def examples(self) -> dict[str, tuple[str, list[Example]]]:
        """Name → (kind, examples), all on the chains that automatic labels are for."""
        problems = {problem.id: problem for problem in self.problems["train"]}
        labelled = {label.trajectory_id for label in self.labels}
        chains = [trajectory for trajectory in self.trajectories if trajectory.id in labelled]
        soft = self.config.train_prm.labels == "soft"
        gold = [label for chain in chains for label in oracle_labels(problems[chain.problem_id], chain)]
        outcomes = ("outcome", build_examples("outcome", problems, chains, self.labels, soft=soft))
        return {
            "auto": ("process", build_examples("process", problems, chains, self.labels, soft=soft)),
            "orm": outcomes,
            "oracle": ("process", build_examples("process", problems, chains, gold, soft=False)),
            HIDDEN: outcomes,
        }

    def chains(self, tag: str, split: str) -> list[Chain]:
        """The chains that stage evaluate sampled, judged, as many a problem as its step figures use."""
        problems = self.problems[split]
        owners = {problem.id: index for index, problem in enumerate(problems)}
        rows = [row for row in store.read_shards(Trajectory, self.folder / "artifacts/evaluate/trajectories")
                if row.id.startswith(f"{tag}/")]
        found = [Chain(owners[row.problem_id], row, judge(problems[owners[row.problem_id]], row.steps))
                 for row in rows]
        return first_per_problem(found, protocol.STEP_CHAINS)


def oracle_labels(problem: Problem, chain: Trajectory) -> list[StepLabel]:
    """The oracle's verdicts up to and with the first error, which is as far as automatic labels go."""
    verdicts = ORACLES[problem.domain](problem, chain.steps)
    at = first_error(verdicts)
    return [StepLabel(chain.id, index, "oracle", None, right, 1.0, 0, "")
            for index, right in enumerate(verdicts[: at + 1 if at >= 0 else None])]


@dataclass(frozen=True, slots=True)
class Run:
    """The models of one seed: seconds each took to train, first-error F1 of the two PRMs, the adversarial suite."""

    seed: int
    seconds: dict[str, float]
    f1: dict[str, Statistic]
    thresholds: dict[str, float]
    adversarial: dict[str, Estimate]


def measure(given: argparse.Namespace) -> tuple[list[Bar], dict[str, Any]]:
    """Trains the models anew, seed by seed, and measures them on what stage evaluate sampled."""
    import torch

    torch.set_num_threads(given.threads)
    workspace = Workspace.read(given.workspace)
    examples = workspace.examples()
    sides = {"dev": workspace.chains("dev-base", "dev"), "test": workspace.chains("test-base", "test")}
    seeds = range(given.seed, given.seed + (1 if given.quick else given.repeats))
    runs = [one_seed(workspace, examples, sides, seed, given) for seed in seeds]
    bootstrap = Bootstrap(len(workspace.problems["test"]), workspace.config.evaluate.bootstrap, given.seed)
    f1 = {name: metrics.average([bootstrap.draws(run.f1[name]) for run in runs]) for name in ("auto", "oracle")}
    # The same problems in every resample: the interval is that of a paired comparison.
    gap = metrics.average([bootstrap.draws(metrics.difference(run.f1["oracle"], run.f1["auto"])) for run in runs])
    times = [run.seconds["auto"] / run.seconds["orm"] for run in runs]
    slower = statistics.median(times)
    lost = {group: _lost(runs, group) for group in GROUPS}
    bars = [
        Bar("first-error F1: oracle labels - automatic labels, points", 100 * gap.value, 100 * gap.low, 100 * gap.high,
            "<= 3", 100 * gap.value <= WITHIN),
        Bar("training time: PRM / ORM on the same chains", slower, min(times), max(times), "<= 1.2", slower <= SLOWER),
        Bar(*lost["all"], "<= 0.5", lost["all"][1] <= LOST),
    ]
    clean = {model: statistics.mean(run.adversarial[f"{model}/clean/accuracy"].value for run in runs)
             for model in ("prm", "orm", HIDDEN)}
    others = [
        *(beside(*lost[group]) for group in GROUPS if group != "all"),
        *(beside(f"adversarial suite, {group} edits: accuracy lost, ORM without surprisal, points",
                 100 * statistics.mean(run.adversarial[f"{HIDDEN}/{group}/accuracy_lost"].value for run in runs))
          for group in GROUPS),
        *(beside(f"adversarial suite: accuracy on clean chains, {model}, %", 100 * value)
          for model, value in clean.items()),
        *(beside(f"first-error F1, {name} labels, %", 100 * one.value, 100 * one.low, 100 * one.high)
          for name, one in f1.items()),
    ]
    return bars, {
        "beside": others,
        "seeds": list(seeds), "threads": given.threads, "test_chains": len(sides["test"]),
        "targets": {name: sum(target == target for example in rows for target in example.targets)
                    for name, (_, rows) in examples.items()},
        "chains": len(examples["auto"][1]),
        "by_seed": [{"seed": run.seed, "seconds": run.seconds, "thresholds": run.thresholds,
                     "f1": {name: _record(bootstrap.estimate(statistic)) for name, statistic in run.f1.items()},
                     "adversarial": {name: _record(one) for name, one in run.adversarial.items()}} for run in runs],
    }


def _record(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _lost(runs: Sequence[Run], group: str) -> tuple[str, float, float, float]:
    """Accuracy lost by the PRM over that lost by the ORM, with its name: of one seed with its interval, of several
    median and range. An ORM that loses nothing counts as one that loses a tenth of a point."""
    lost = {model: [run.adversarial[f"{model}/{group}/accuracy_lost"].value for run in runs]
            for model in ("prm", "orm")}
    ratios = [mine / max(theirs, LEAST_LOST) for mine, theirs in zip(lost["prm"], lost["orm"], strict=True)]
    low, high = min(ratios), max(ratios)
    whole = runs[0].adversarial.get(f"prm vs orm/{group}/lost_ratio")
    if len(runs) == 1 and whole is not None:
        low, high = whole.low, whole.high
    points = [100 * statistics.mean(values) for values in lost.values()]
    return (f"adversarial suite, {group} edits: accuracy lost, PRM ({points[0]:.1f} points) / ORM ({points[1]:.1f})",
            statistics.median(ratios), low, high)


def one_seed(
    workspace: Workspace, examples: Mapping[str, tuple[str, list[Example]]], sides: Mapping[str, list[Chain]],
    seed: int, given: argparse.Namespace,
) -> Run:
    """Trains the three models with a seed and measures them."""
    config = dataclasses.replace(workspace.config, seed=seed)
    seconds, scorers = {}, {}
    backbone = str(workspace.folder / "artifacts/warmup/models/backbone")
    # The oracle's first: it pays for lazy initialisation. The two whose times are compared take turns.
    for name in ("oracle", *(("auto", "orm") if seed % 2 else ("orm", "auto")), HIDDEN):
        kind, rows = examples[name]
        with_surprisal = [one for one in config.models.surprisal if name != HIDDEN or one != kind]
        settings = dataclasses.replace(config, models=dataclasses.replace(config.models, surprisal=with_surprisal))
        with tempfile.TemporaryDirectory() as work:
            start = time.perf_counter()
            trained = train_on(kind, backbone, rows, [], settings, work=Path(work), report=lambda values, update: None)
            seconds[name] = time.perf_counter() - start
        # Thresholds are chosen on dev chains, so calibrated scores would tell the same.
        scorers[name] = RewardScorer(trained.model, trained.encoder, Calibrator("identity", 0), f"{name}-{seed}",
                                     config.serve.batch_size)
    f1, thresholds = {}, {}
    for name in ("auto", "oracle"):
        thresholds[name], f1[name] = first_error_f1(scorers[name], workspace, sides)
    suite = _adversarial(workspace, scorers, seed, given)
    log.info("seed %d: %s", seed, ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
    return Run(seed, seconds, f1, thresholds, suite)


def first_error_f1(
    scorer: RewardScorer, workspace: Workspace, sides: Mapping[str, list[Chain]]
) -> tuple[float, Statistic]:
    """The threshold with the best F1 on the dev chains, and the F1 on the test chains at it."""
    settings = workspace.config
    with tempfile.TemporaryDirectory() as work:
        scored = {side: score_with_prm(scorer, chains, workspace.problems[side], settings.evaluate.aggregate,
                                       Path(work) / side) for side, chains in sides.items()}
    threshold, reason = protocol.choose_threshold(scored["dev"], settings.serve.threshold)
    if reason is not None:
        raise InputError(f"--workspace {workspace.folder}: no threshold can be chosen ({reason}); run the default "
                         "profile, whose dev problems have right and wrong chains")
    table = protocol.step_table(scored["test"])
    count = len(workspace.problems["test"])
    return threshold, metrics.prm_tally(table.compared, table.gold, table.problem, count, threshold).f1


def _adversarial(
    workspace: Workspace, scorers: Mapping[str, RewardScorer], seed: int, given: argparse.Namespace
) -> dict[str, Estimate]:
    """The suite as `prm adversarial` runs it, on the PRM from automatic labels and the two ORMs."""
    chains, dev = (
        read_side([workspace.folder / f"data/{side}.jsonl"], arithmetic.NAME,
                  workspace.folder / "artifacts/evaluate/trajectories", 1 if given.quick else 2, given.seed)
        for side in ("test", "dev"))
    result = run_adversarial({"prm": scorers["auto"], "orm": scorers["orm"], HIDDEN: scorers[HIDDEN]}, chains, dev,
                             seed=seed, resamples=workspace.config.evaluate.bootstrap)
    return dict(result.figures)

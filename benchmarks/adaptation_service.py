"""A simulated service for `benchmarks/adaptation.py`: a shifted stream of questions, agents that carry trajectories out
and tell how they ended, reviewers who are the oracle, and a loop that adapts the model to all of it."""

from __future__ import annotations

import dataclasses
import random
import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from prm_core import config as configuration
from prm_core.adaptation import loop, training
from prm_core.adaptation.rounds import REVIEW, home
from prm_core.config import Config
from prm_core.domains import DOMAINS
from prm_core.domains.oracle import ORACLES, first_error
from prm_core.evaluation.metrics import choose_threshold, prm_tally
from prm_core.platform import store
from prm_core.review.files import Answer
from prm_core.review.importing import import_answers
from prm_core.review.session import HUMAN, QUEUE, generated
from prm_core.sampling.policy import load_policy
from prm_core.sampling.rollouts import sample_trajectories
from prm_core.scoring.scorer import RewardScorer, load_scorer
from prm_core.serving import model_registry, promotion
from prm_core.serving.drift import samples as files
from prm_core.serving.drift.outcomes import Outcome, tell, trajectory_id
from prm_core.serving.drift.samples import sample
from prm_core.serving.drift.watch import SAMPLES
from prm_core.stages.base import execute, model_path
from prm_core.training.examples import Example
from prm_core.types import Problem, Trajectory

REVIEWERS, AGENTS = 5, 10
# Times of the simulated stream, seconds since 1970: all within the window.
BEGIN, ROUND_SECONDS = 1_790_000_000.0, 3600.0
STREAM = ".stream"


@dataclass(frozen=True, slots=True)
class Piece:
    """A trajectory of the stream. Attributes: problem, trajectory: as sampled; gold: the oracle's verdict on each
    step."""

    problem: Problem
    trajectory: Trajectory
    gold: tuple[bool, ...]


def prepare(workspace: Path, into: Path) -> Path:
    """A copy of a finished run whose model is the champion, with texts kept and no waiting."""
    if not into.exists():
        shutil.copytree(workspace, into)
        raw = configuration.read_yaml(into / "params.yaml")
        raw |= {"drift": {"texts": True, "sample": 1.0}}
        store.write_text(into / "params.yaml", yaml.safe_dump(raw, sort_keys=False))
    config = configuration.load(into)
    if not (into / "artifacts/register").is_dir():
        execute("register", into)
    promotion.promote(into, config.promote)
    return into


def stream(workspace: Path, other: Path, questions: int) -> list[Piece]:
    """Problems of another run's level that its base policy has answered once each: other phrases, names and facts than
    the champion has seen, and another policy. Sampled once, then read back."""
    config, folder = configuration.load(workspace), workspace / STREAM
    theirs = configuration.load(other)
    problems = DOMAINS[theirs.domain].levels[theirs.data.level]("stream", questions, theirs.seed)
    if not (folder / "done").exists():
        policy = load_policy(model_path(other, theirs.models.policy), theirs)
        rows = sample_trajectories(policy, problems, DOMAINS, samples=1, temperature=theirs.evaluate.temperature,
                                   max_new_tokens=theirs.generate.max_new_tokens, batch_size=512, seed=theirs.seed,
                                   prefix="stream")
        store.write_shard(folder, 0, Trajectory, rows)
        store.write_text(folder / "done", "")
    by_id = {one.id: one for one in problems}
    found = [(by_id[one.problem_id], one) for one in store.read_shards(Trajectory, folder) if one.problem_id in by_id]
    return [Piece(problem, one, tuple(ORACLES[config.domain](problem, one.steps))) for problem, one in found]


def f1(scorer: RewardScorer, pieces: Sequence[Piece], threshold: float) -> dict[str, float]:
    """First-error F1 in points.

    Args:
        threshold: that is served with.

    Returns `f1` at that threshold, and `f1_chosen`, each half at the threshold that is best on the other: what the
    model can tell, wherever its scores lie.
    """
    said = scorer.score([(one.problem.prompt, one.trajectory.steps) for one in pieces])
    rows = [(one.step_scores, first_error(piece.gold)) for one, piece in zip(said, pieces, strict=True)]
    mixed = random.Random("halves").sample(rows, len(rows))
    halves = (mixed[::2], mixed[1::2])
    chosen = [_f1(mine, choose_threshold(*zip(*other, strict=True))[0])
              for mine, other in (halves, halves[::-1])]
    return {"f1": _f1(rows, threshold), "f1_chosen": statistics.fmean(chosen)}


def _f1(rows: Sequence[tuple[Sequence[float], int]], threshold: float) -> float:
    scores, gold = zip(*rows, strict=True)
    tallied = prm_tally(scores, gold, range(len(rows)), len(rows), threshold)
    return 100 * float(tallied.f1(np.ones((1, len(rows))))[0])


def champion(workspace: Path, config: Config) -> tuple[str, RewardScorer]:
    """The champion's URI and the model."""
    uri = model_registry.pinned(f"models:/{config.register.model_name}@{config.promote.alias}", workspace)
    return uri, load_scorer(model_registry.reward_model_folder(uri, workspace), device="cpu")


class Service:
    """The service in a workspace.

    Args:
        workspace: its own copy.
        adapt: settings over the section `adapt`.
        false_agents: share of the agents that tell success of whatever they did.
        false_reviewers: how many of the reviewers say the contrary of the oracle.
        alike: people are asked about any step alike, not about the most telling ones.
    """

    def __init__(
        self, workspace: Path, adapt: dict[str, Any], *, false_agents: float = 0.0, false_reviewers: int = 0,
        alike: bool = False,
    ) -> None:
        config = configuration.load(workspace)
        self.config = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, **adapt))
        self.workspace, self._alike = workspace, alike
        self._false_agents, self._false_reviewers = round(false_agents * AGENTS), false_reviewers
        self._rng = random.Random(f"service/{config.seed}")
        self._pieces: dict[str, Piece] = {}
        self._round = 0

    def serve(self, pieces: Sequence[Piece]) -> None:
        """Has the champion score trajectories, keeps samples of them and tells how they ended."""
        uri, scorer = champion(self.workspace, self.config)
        now = BEGIN + ROUND_SECONDS * self._round
        self._round += 1
        said = scorer.score([(one.problem.prompt, one.trajectory.steps) for one in pieces])
        rows, ends = [], []
        for number, (one, found) in enumerate(zip(pieces, said, strict=True)):
            if not found.step_scores or found.truncated_steps:
                continue
            name = trajectory_id(one.problem.prompt, one.trajectory.steps)
            self._pieces[name] = one
            rows.append(sample(
                one.problem.prompt, one.trajectory.steps, found.step_scores, time=now + number, raw=found.raw_scores,
                threshold=self.config.serve.threshold, renderer=scorer.encoder.config.renderer, source=uri,
                version=scorer.version, texts=True, tenant=f"tenant-{number % 3}"))
            agent = self._rng.randrange(AGENTS)
            success = bool(one.trajectory.outcome) or agent < self._false_agents
            ends.append(Outcome(name, success, f"agent-{agent}", 1.0, now + number))
        folder = self.workspace / self.config.drift.folder
        files.write(folder / SAMPLES / f"20260921T1200{self._round:02}-0-0.parquet", rows)
        tell(folder, ends)

    def adapt(self) -> loop.Done:
        """A round: the loop asks, the reviewers answer, it goes on."""
        now = BEGIN + 86400
        done = loop.adapt(self.workspace, self.config, now)
        if done.state == loop.WAITING and done.round:
            self.review()
            done = loop.adapt(self.workspace, self.config, now, go=True)
        return done

    def review(self) -> None:
        """The reviewers answer all that is asked, each step one of them."""
        review = home(self.workspace, self.config) / REVIEW
        rows = [row for _, row in store.read_json_lines(review / QUEUE)]
        import_answers(list(self._answers(rows)), review / HUMAN, generated(review))

    def _answers(self, rows: Sequence[dict[str, Any]]) -> Iterator[Answer]:
        for row in rows:
            piece = self._pieces[row["trajectory_id"]]
            reviewer = self._rng.randrange(REVIEWERS)
            right = piece.gold[row["step_index"]] != (reviewer < self._false_reviewers)
            yield Answer("the simulation", row["trajectory_id"], row["step_index"], row["chain"], right, "",
                         f"reviewer-{reviewer}", row["chance"])


def gold_reference(workspace: Path, config: Config, pieces: Sequence[Piece], into: Path) -> RewardScorer:
    """What the champion becomes when it is trained on the oracle's verdict on every step of the traffic."""
    if not (into / "config.json").exists():
        steps, ends = training.replayed(workspace, config)
        for one in pieces:
            wrong = first_error(one.gold)
            targets = tuple(float("nan") if 0 <= wrong < step else float(step != wrong)
                            for step in range(len(one.gold)))
            served = Example(one.problem.prompt, one.problem.prompt, one.trajectory.steps, targets, copied=False)
            steps.append(served)
            ends.append(dataclasses.replace(served, targets=(float(bool(one.trajectory.outcome)),)))
        training.train(champion(workspace, config)[1], steps, ends, training.settings(config),
                       work=into.with_name(f"{into.name}.work"), into=into)
    return load_scorer(into, device="cpu")

"""What a reward model's choice is worth while an agent works: each turn the PRM's choice among several, against the
first that comes, and against the ORM's choice among whole runs that cost as many tokens.

    python -m benchmarks.agent_search WORKSPACE… --out benchmarks/results/agent_search.json

On the test problems of finished runs of the profile `agents`, one workspace a seed. A turn is chosen before it is
executed: no candidate but the chosen one reaches the environment. The oracle says which calls are right.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Bar, parsed, write
from prm_core import config as configuration
from prm_core.domains import DOMAINS
from prm_core.domains.oracle import ORACLES
from prm_core.platform import store
from prm_core.sampling.episodes import Episode, run_episodes
from prm_core.sampling.policy import load_policy
from prm_core.scoring.scorer import RewardScorer, load_scorer
from prm_core.stages.base import model_path
from prm_core.types import Problem, Step

CANDIDATES = 4
Figures = dict[str, float]


def figures(episodes: Sequence[Episode]) -> Figures:
    """In percent: calls that are right, runs that succeed, successes with a wrong turn; tokens and turns a run."""
    verdicts = [ORACLES[run.problem.domain](run.problem, run.steps) for run in episodes]
    calls = [right for run, row in zip(episodes, verdicts, strict=True)
             for step, right in zip(run.steps, row, strict=True) if step.calls]
    won = [row for run, row in zip(episodes, verdicts, strict=True) if run.success]
    return {"calls_right": 100 * statistics.mean(calls), "success": 100 * len(won) / len(episodes),
            "lucky": 100 * sum(not all(row) for row in won) / max(len(won), 1),
            "tokens": statistics.mean(run.tokens for run in episodes),
            "turns": statistics.mean(len(run.steps) for run in episodes)}


def measure(workspace: Path) -> dict[str, Figures]:
    """Way to choose → its figures, in one workspace."""
    config = configuration.load(workspace)
    problems = store.read_jsonl(Problem, workspace / "data/test.jsonl")
    policy = load_policy(model_path(workspace, config.models.policy), config)
    prm, orm = (load_scorer(workspace / f"artifacts/train_prm/{name}", device=config.models.device)
                for name in ("prm", "orm"))
    sampling = {"temperature": config.evaluate.temperature, "max_new_tokens": config.generate.max_new_tokens,
                "batch_size": config.generate.batch_size, "seed": config.seed}

    def worth(chains: Sequence[tuple[str, Sequence[Step]]]) -> list[float]:
        return [score.step_scores[-1] if score.step_scores and not score.truncated_steps else 0.0
                for score in prm.score(chains)]

    first = run_episodes(policy, DOMAINS, [(problem, ()) for problem in problems], **sampling)
    chosen = run_episodes(policy, DOMAINS, [(problem, ()) for problem in problems], candidates=CANDIDATES, worth=worth,
                          **sampling)
    runs = max(1, round(sum(run.tokens for run in chosen) / sum(run.tokens for run in first)))
    return {"first": figures(first), "prm_turns": figures(chosen),
            "orm_runs": figures(best_runs(run_episodes(
                policy, DOMAINS, [(problem, ()) for problem in problems for _ in range(runs)], **sampling), orm, runs))}


def best_runs(episodes: Sequence[Episode], orm: RewardScorer, runs: int) -> list[Episode]:
    """Of each problem's runs the one that the ORM likes best, with the tokens of all."""
    found = []
    for start in range(0, len(episodes), runs):
        group = [run for run in episodes[start : start + runs] if run.steps] or [episodes[start]]
        asked = [(run.problem.prompt, run.steps) for run in group] if group[0].steps else []
        scores = [score.step_scores[-1] if score.step_scores else 0.0 for score in orm.score(asked)]
        best = group[max(range(len(scores)), key=scores.__getitem__, default=0)]
        tokens = sum(run.tokens for run in episodes[start : start + runs])
        found.append(Episode(best.problem, best.steps, best.ended, best.success, tokens))
    return found


def main() -> None:
    """Measures every workspace; writes and prints the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agent_search")
    parser.add_argument("workspaces", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parsed(parser)
    found = {workspace.name: measure(workspace) for workspace in given.workspaces}
    bars = []
    for name, rival, least in (("first choice", "first", 10.0), ("the ORM's choice of runs", "orm_runs", 3.0)):
        gains = [one["prm_turns"]["calls_right"] - one[rival]["calls_right"] for one in found.values()]
        what = f"calls that are right: the PRM's choice among {CANDIDATES} - {name}, points, worst of {len(gains)}"
        bars.append(Bar(what, min(gains), min(gains), max(gains), f">= {least:g}", min(gains) >= least))
    for rival in ("first", "orm_runs"):
        gains = [one["prm_turns"]["success"] - one[rival]["success"] for one in found.values()]
        bars.append(Bar(f"runs that succeed: the same - {rival}, points, median", statistics.median(gains), min(gains),
                        max(gains), "reported", True))
    write(given, bars, workspaces=found)


if __name__ == "__main__":
    main()

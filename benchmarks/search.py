"""What a search is worth for its tokens: each method's accuracy against those of policy and reward model together.

    python -m benchmarks.search WORKSPACE… --out benchmarks/results/search.json

On the test problems of finished runs, one workspace a seed (or level), by the base policy; settings are those of the
workspaces' params.yaml, which were chosen on other seeds. Accuracies of whole chains are exact means over all N of 16
sampled ones, and their tokens means too; methods that decide while they sample are run. A plot lies beside the result.

A method is compared with a rival at equal total tokens: the rival's accuracy at as many tokens is read between its N,
straight in the logarithm of tokens, problem by problem, so that intervals are over problems. Where a rival has no point
as cheap or as dear, its cheapest or dearest stands.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Bar, parsed, write
from prm_core import config as configuration
from prm_core.config import Config
from prm_core.domains import DOMAINS
from prm_core.evaluation.judged_chains import Chain
from prm_core.evaluation.search_costs import at_tokens, whole_tokens
from prm_core.models.encoder import Encoder
from prm_core.platform import store
from prm_core.sampling.policy import Policy, load_policy
from prm_core.scoring.scorer import RewardScorer, load_scorer
from prm_core.scoring.session import ScoringSession
from prm_core.search import choosing, selection, whole
from prm_core.search.base import Tools, mean_cost
from prm_core.search.methods import search
from prm_core.stages.base import model_path
from prm_core.types import Problem, Step

SAMPLES, RESAMPLES, DRAWS = 16, 2000, 64
NS = (1, 2, 4, 8, 16)
# Process, outcome and advantage model.
MODELS = ("prm", "orm", "pav")
# Settings of the advantage model, whose last value alone prefers wrong chains (chosen on seed 17).
OWN = {"chain_aggregate": "prod"}
# Of methods that decide while they sample: name of the curve, method, model, settings of its points.
RUNS: tuple[tuple[str, str, str, tuple[dict[str, float], ...]], ...] = (
    ("adaptive_best_of_n, prm", "adaptive_best_of_n", "prm",
     tuple({"candidates": SAMPLES, "gain": gain} for gain in (0.2, 0.1, 0.05, 0.03))),
    ("adaptive_best_of_n, orm", "adaptive_best_of_n", "orm", ({"candidates": SAMPLES, "gain": 0.05},)),
    ("step_best_of_n, prm", "step_best_of_n", "prm", tuple({"candidates": n} for n in (2, 4, 8, 16))),
    ("step_best_of_n, prm, best of all", "step_best_of_n", "prm",
     tuple({"candidates": n, "threshold": 1.0} for n in (2, 4))),
    ("step_best_of_n, pav, best of all", "step_best_of_n", "pav",
     tuple({"candidates": n, "threshold": 1.0} for n in (2, 4))),
    ("beam, prm", "beam", "prm", ({"width": 2, "candidates": 2}, {"width": 4, "candidates": 4})),
    ("dvts, prm", "dvts", "prm", ({"width": 2, "candidates": 2}, {"width": 4, "candidates": 4})),
    ("dvts, pav", "dvts", "pav", ({"width": 4, "candidates": 4},)),
    ("blocks, prm", "blocks", "prm", ({"width": 2, "candidates": 2}, {"width": 4, "candidates": 4})),
)
# The bars' settings: those that were chosen on old seeds.
BEST, ADAPTIVE = ("step_best_of_n, prm", 2), ("adaptive_best_of_n, prm", 2)


@dataclass(frozen=True, slots=True)
class Point:
    """A method at one setting.

    Attributes:
        label: the setting.
        right: accuracy on each problem, (problems,).
        tokens: total, on each problem.
        cost: what they are, means.
        seconds: for all problems; of a point that is computed from shared samples those of sampling and scoring all.
    """

    label: str
    right: np.ndarray
    tokens: np.ndarray
    cost: Mapping[str, float]
    seconds: float


Curves = dict[str, list[Point]]


def whole_curves(
    problems: Sequence[Problem], tools: Tools, scorer: RewardScorer, name: str, pools: list[whole.Pool], seed: int
) -> Curves:
    """Curves of methods that choose among whole chains with one model, from the same sampled chains.

    Args:
        scorer, name: the model.
        pools: sampled without a score.
    """
    start = time.perf_counter()
    meters = {pool.problem.id: pool.meter for pool in pools}
    asked = [(pool, chain) for pool in pools for chain in pool.chains if chain.steps]
    said = iter(tools.score([(pool.problem, chain.steps) for pool, chain in asked], meters))
    seconds = time.perf_counter() - start
    for pool in pools:
        pool.scores = [next(said) if chain.steps else None for chain in pool.chains]
    curves: Curves = {f"{method}, {name}": [] for method in ("best_of_n", "weighted_majority", "self_consistency")}
    for n, method in itertools.product(NS, curves):
        right = np.zeros(len(problems))
        for row, pool in enumerate(pools):
            values, good = pool.values(tools), [bool(chain.outcome) for chain in pool.chains]
            if method.startswith("best_of_n"):
                right[row] = selection.best_of_n(values, good, n)
            elif method.startswith("weighted"):
                right[row] = selection.majority_of_n(pool.groups(tools), good, n,
                                                     weights=np.maximum(values, 0), seed=seed)
            else:
                right[row] = _supported(pool.groups(tools), values, good, n, seed)
        curves[method].append(_point(pools, right, n, seconds, scorer.encoder))
    return curves


def _supported(groups: Sequence[int], values: Sequence[float], good: Sequence[bool], n: int, seed: int) -> float:
    """Accuracy of votes times score, a mean over DRAWS draws of N chains."""
    rng, hits = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        rows = rng.permutation(len(good))[:n]
        products = choosing.supported([groups[row] for row in rows], [values[row] for row in rows])
        hits.append(good[rows[choosing.first_best(products)]])
    return statistics.fmean(hits)


def _point(
    pools: Sequence[whole.Pool], right: np.ndarray, n: int, seconds: float, encoder: Encoder | None
) -> Point:
    """N of the sampled chains: their share of what was sampled, and of a reward model what it reads of them, which
    what several begin with is once.

    Args:
        encoder: the reward model's; None where none is asked.
    """
    sampled = np.array([pool.meter.generated * n / len(pool.chains) + pool.meter.read for pool in pools], dtype=float)
    judged = np.zeros(len(pools))
    if encoder is not None:
        def length(prompt: str, steps: Sequence[Step]) -> int:
            return len(encoder.encode(prompt, steps, may_be_empty=True).ids)

        for row, pool in enumerate(pools):
            chains = [Chain(0, chain) for chain in pool.chains]
            with_it, without = (whole_tokens(chains, [pool.problem], length, [n], models)[n] for models in (1, 0))
            judged[row] = with_it - without
    cost = {"sampled": float(sampled.mean()), "scored": float(judged.mean())}
    return Point(f"N = {n}", right, sampled + judged, cost, seconds)


def measure(workspace: Path) -> Curves:
    """The curves of one workspace."""
    config = configuration.load(workspace)
    problems = store.read_jsonl(Problem, workspace / "data/test.jsonl")
    policy = load_policy(model_path(workspace, config.models.policy), config)
    scorers = {name: load_scorer(workspace / f"artifacts/train_prm/{name}", device=config.models.device)
               for name in MODELS}
    plain = _tools(policy, scorers["prm"], config)
    pools = whole.new_pools(problems)
    start = time.perf_counter()
    whole.draw(pools, [SAMPLES] * len(pools), plain, config.seed, scored=False)
    seconds = time.perf_counter() - start
    curves: Curves = {"majority": []}
    for n in NS:
        right = np.array([selection.majority_of_n(pool.groups(plain), [bool(chain.outcome) for chain in pool.chains],
                                                  n, seed=config.seed) for pool in pools])
        curves["majority"].append(_point(pools, right, n, seconds, None))
    for name, scorer in scorers.items():
        curves |= whole_curves(problems, _tools(policy, scorer, config), scorer, name, pools, config.seed)
    for curve, method, model, settings in RUNS:
        curves[curve] = [_run(method, problems, policy, scorers[model], config, over) for over in settings]
    return curves


def _tools(policy: Policy, scorer: RewardScorer, config: Config, **over: Any) -> Tools:
    own = OWN if scorer.kind == "advantage" else {}
    return Tools(policy, ScoringSession(scorer, policy.encoder), DOMAINS, replace(config.search, **own, **over),
                 config.generate.max_new_tokens, config.generate.batch_size)


def _run(
    method: str, problems: Sequence[Problem], policy: Policy, scorer: RewardScorer, config: Config, over: dict[str, Any]
) -> Point:
    start = time.perf_counter()
    found = search(method, problems, _tools(policy, scorer, config, **over), config.seed)
    label = ", ".join(f"{name} {value:g}" for name, value in over.items())
    return Point(label, np.array([bool(one.trajectory.outcome) for one in found], dtype=float),
                 np.array([one.meter.total for one in found], dtype=float), mean_cost(found),
                 time.perf_counter() - start)


def tokens_for(curve: Sequence[Point], accuracy: float, rows: np.ndarray) -> float:
    """Tokens a problem at which a curve reaches an accuracy on these problems; its dearest where it does not."""
    better: list[tuple[float, float]] = []
    for point in sorted(curve, key=lambda point: point.tokens.mean()):
        reached = float(point.right[rows].mean())
        # What costs more and gives no more is nobody's choice.
        if not better or reached > better[-1][0]:
            better.append((reached, math.log(point.tokens[rows].mean())))
    return float(np.exp(np.interp(accuracy, *zip(*better, strict=True))))


def difference(point: Point, rival: Sequence[Point], seed: int) -> tuple[float, float, float]:
    """Points by which it is better at equal total tokens, and the 95 % interval over problems."""
    theirs = at_tokens([(float(one.tokens.mean()), one.right) for one in rival], float(point.tokens.mean()))
    gaps = 100 * (point.right - theirs)
    drawn = np.random.default_rng(seed).integers(len(gaps), size=(RESAMPLES, len(gaps)))
    low, high = np.percentile(gaps[drawn].mean(1), (2.5, 97.5))
    return float(gaps.mean()), float(low), float(high)


def ratio(point: Point, rival: Sequence[Point], seed: int) -> tuple[float, float, float]:
    """Its tokens over the rival's at equal accuracy, and the 95 % interval over problems."""
    rng, every = np.random.default_rng(seed), np.arange(len(point.right))
    found = []
    for rows in (every, *(rng.integers(len(every), size=len(every)) for _ in range(RESAMPLES // 4))):
        found.append(point.tokens[rows].mean() / tokens_for(rival, point.right[rows].mean(), rows))
    low, high = np.percentile(found[1:], (2.5, 97.5))
    return float(found[0]), float(low), float(high)


def bars(curves: Mapping[str, Curves]) -> list[Bar]:
    """The bars over all workspaces."""
    asked = [
        ("step-level best-of-N (best method) - weighted majority, points at equal total tokens", BEST,
         "weighted_majority, prm", difference, 3.0),
        ("step-level best-of-N - weighted majority by the best of the models, points at equal total tokens", BEST,
         "weighted_majority", difference, 3.0),
        ("step-level best-of-N - whole-answer best-of-N, points at equal total tokens", BEST, "best_of_n, prm",
         difference, 2.0),
        ("step-level best-of-N - whole-answer best-of-N by the best of the models, points at equal total tokens", BEST,
         "best_of_n", difference, 2.0),
        ("adaptive N / fixed N, tokens at equal accuracy", ADAPTIVE, "best_of_n, prm", ratio, 0.6),
    ]
    found = []
    for name, (curve, place), rival, compare, least in asked:
        sign = 1 if compare is difference else -1
        # Of a rival with every model the one that leaves least.
        each = [min((compare(one[curve][place], points, seed) for key, points in one.items()
                     if key == rival or key.startswith(f"{rival}, ")), key=lambda row: sign * row[0])
                for seed, one in enumerate(curves.values())]
        worst = min(each, key=lambda row: sign * row[0])
        middle = statistics.median(row[0] for row in each)
        text = f"{'>=' if sign > 0 else '<='} {least:g}"
        found += [Bar(f"{name}, median of {len(each)}", middle, min(row[0] for row in each),
                      max(row[0] for row in each), text, bool(sign * middle >= sign * least)),
                  Bar(f"{name}, worst, 95 % over problems", *worst, text, bool(sign * worst[0] >= sign * least))]
    return found


def table(curves: Curves) -> dict[str, list[dict[str, Any]]]:
    """What the result file says of each curve; `over_weighted` is at equal total tokens, with its interval."""
    rows = {}
    for name, points in curves.items():
        rows[name] = [{"setting": point.label, "accuracy": 100 * float(point.right.mean()),
                       "tokens": float(point.tokens.mean()), "cost": dict(point.cost), "seconds": point.seconds,
                       "over_weighted": difference(point, curves["weighted_majority, prm"], 0)} for point in points]
    return rows


def plot(path: Path, curves: Mapping[str, Curves]) -> None:
    """Accuracy against total tokens, a panel a workspace."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(curves), figsize=(6.5 * len(curves), 5), squeeze=False, sharey=True)
    for panel, (workspace, one) in zip(panels[0], curves.items(), strict=True):
        for number, (name, points) in enumerate(one.items()):
            style = {"marker": "os^Dv"[number // 10], "color": f"C{number % 10}", "linewidth": 1.2, "markersize": 4}
            ordered = sorted(points, key=lambda point: point.tokens.mean())
            panel.plot([point.tokens.mean() for point in ordered], [100 * point.right.mean() for point in ordered],
                       label=name, **style)
        panel.set(xscale="log", xlabel="tokens a problem, policy and reward model together", title=workspace)
        panel.set_xticks([100, 200, 400, 800, 1600], ["100", "200", "400", "800", "1600"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("right answers, %")
    panels[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def main() -> None:
    """Measures every workspace; writes and prints the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search")
    parser.add_argument("workspaces", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parsed(parser)
    curves = {workspace.name: measure(workspace) for workspace in given.workspaces}
    plot(given.out.with_suffix(".png"), curves)
    used = asdict(configuration.load(given.workspaces[0]).search)
    write(given, bars(curves), settings=used, workspaces={name: table(one) for name, one in curves.items()})


if __name__ == "__main__":
    main()

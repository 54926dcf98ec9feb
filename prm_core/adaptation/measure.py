"""Champion and challenger on the same chains: those of the evaluation, whose first errors (or answers) are known, and
held-out served ones, of which people have judged some steps and outcomes were told; and how easily either is talked
out of a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prm_core.adaptation.relabel import Trust, chance_of, is_heard, trusted
from prm_core.adaptation.traffic import Served, success
from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.evaluation import metrics, protocol
from prm_core.evaluation.adversarial.gold_chains import judged_or_answered, pick_chains
from prm_core.evaluation.judged_chains import Chain, first_per_problem, judge, with_prm
from prm_core.evaluation.metrics import INTERVAL, Bootstrap, Estimate
from prm_core.labeling.human.labels import human_verdicts
from prm_core.platform import store
from prm_core.scoring.calibration import expected_calibration_error
from prm_core.scoring.scorer import ChainScore, RewardScorer
from prm_core.serving.drift.outcomes import Outcome
from prm_core.types import Problem, StepLabel, Trajectory

CHAMPION, CHALLENGER = "champion", "challenger"
EVALUATION = "artifacts/evaluate/trajectories"
RESAMPLES = 1000
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Old:
    """Judged chains of the evaluation. Attributes: problems, chains: of the splits `dev` and `test`."""

    problems: Mapping[str, Sequence[Problem]]
    chains: Mapping[str, Sequence[Chain]]


def old_chains(workspace: Path, by: str) -> Old:
    """The base policy's chains of the dev and test problems, those that the evaluation takes for the same figures: the
    first few a problem, and by outcomes every one of the test problems.

    Args:
        by: `promote.by`: what is compared, steps, of which an oracle knows, or outcomes.

    Raises InputError where the workspace has none, or no oracle judges their steps and these are to be compared.
    """
    if not (workspace / EVALUATION).is_dir():
        raise InputError(f"{workspace / EVALUATION}: is not there, and a challenger must not be worse than the "
                         "champion on the evaluation's chains; run the chain here (`prm run`)")
    problems = {split: store.read_jsonl(Problem, workspace / f"data/{split}.jsonl") for split in ("dev", "test")}
    owners = {split: {one.id: index for index, one in enumerate(group)} for split, group in problems.items()}
    found: dict[str, list[Chain]] = {split: [] for split in problems}
    for one in store.read_shards(Trajectory, workspace / EVALUATION):
        split, _, policy = one.id.split("/", 1)[0].partition("-")
        if policy == "base" and split in found:
            index = owners[split][one.problem_id]
            found[split].append(Chain(index, one, judge(problems[split][index], one.steps)))
    if by == "steps" and any(chain.gold is None for chain in found["test"]):
        raise InputError(f"{workspace / EVALUATION}: no oracle judges the steps of these problems, so nothing says "
                         "whether a challenger is worse at them; set promote.by to outcomes, and it is held to how "
                         "well its scores tell right answers from wrong ones")
    return Old(problems, {split: group if (split, by) == ("test", "outcomes") else
                          first_per_problem(group, protocol.STEP_CHAINS) for split, group in found.items()})


def both(champion: RewardScorer, challenger: RewardScorer, pairs: Sequence[tuple[str, Sequence[Any]]]
         ) -> dict[str, list[ChainScore]]:
    """What each says of (prompt, steps) pairs, in one pass where they share a backbone."""
    if not pairs:
        return {CHAMPION: [], CHALLENGER: []}
    if champion.shares_pass(challenger):
        first, second = champion.score_with([challenger], pairs)
    else:
        first, second = champion.score(pairs), challenger.score(pairs)
    return {CHAMPION: first, CHALLENGER: second}


def old_figures(champion: RewardScorer, challenger: RewardScorer, old: Old, config: Config) -> dict[str, Any]:
    """`old/…` of each model, and the difference of what `promote.by` compares, each with an interval over problems.

    By steps: the first-error F1 at the threshold that is served with, `old/f1_gain`, the calibration error, and the
    challenger's F1 as the evaluation has it, with its spread. By outcomes: how well scores of chains tell right answers
    from wrong ones, `old/…/outcome_auroc` and `old/outcome_auroc_gain`.
    """
    of, splits = (_by_outcomes, ["test"]) if config.promote.by == "outcomes" else (_by_steps, ["dev", "test"])
    scored: dict[str, dict[str, list[Chain]]] = {CHAMPION: {}, CHALLENGER: {}}
    for split in splits:
        chains = old.chains[split]
        said = both(champion, challenger, [(old.problems[split][chain.problem].prompt, chain.trajectory.steps)
                                           for chain in chains if chain.trajectory.steps])
        for name, found in said.items():
            told = iter(found)
            # A chain without a step is nothing a model can score, and has no evidence for it.
            scored[name][split] = [
                with_prm(chain, next(told) if chain.trajectory.steps else ChainScore((), (), 1),
                         config.evaluate.aggregate) for chain in chains]
    problems = len(old.problems["test"])
    bootstrap = Bootstrap(problems, config.evaluate.bootstrap, config.seed)
    return of(scored, problems, bootstrap, config)


def _by_outcomes(
    scored: Mapping[str, Mapping[str, Sequence[Chain]]], problems: int, bootstrap: Bootstrap, config: Config
) -> dict[str, Any]:
    told = {name: metrics.auroc([chain.prm_score for chain in splits["test"]],
                                [chain.right for chain in splits["test"]],
                                [chain.problem for chain in splits["test"]]) for name, splits in scored.items()}
    figures = {f"old/{name}/outcome_auroc": _of(bootstrap.estimate(found)) for name, found in told.items()}
    gain = metrics.difference(told[CHALLENGER], told[CHAMPION])
    return figures | {"old/outcome_auroc_gain": _of(bootstrap.estimate(gain))}


def _by_steps(
    scored: Mapping[str, Mapping[str, Sequence[Chain]]], problems: int, bootstrap: Bootstrap, config: Config
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    served = {}
    for name, splits in scored.items():
        table = protocol.step_table(splits["test"])
        steps = metrics.judged_steps(table.scores, table.gold, table.problem, problems)
        served[name] = metrics.prm_tally(table.compared, table.gold, table.problem, problems, config.serve.threshold).f1
        figures[f"old/{name}/f1"] = _of(bootstrap.estimate(served[name]))
        figures[f"old/{name}/ece"] = _of(bootstrap.estimate(metrics.ece(steps, config.evaluate.bins), centred=True))
    figures["old/f1_gain"] = _of(bootstrap.estimate(metrics.difference(served[CHALLENGER], served[CHAMPION])))
    chosen, _ = protocol.choose_threshold(scored[CHALLENGER]["dev"], config.serve.threshold)
    table = protocol.step_table(scored[CHALLENGER]["test"])
    figures["old/evaluated_f1"] = _of(bootstrap.estimate(
        metrics.prm_tally(table.compared, table.gold, table.problem, problems, chosen).f1))
    figures["old/evaluated_f1_spread"] = protocol.f1_spread(scored[CHALLENGER]["test"], problems, chosen)
    return figures


def _of(value: Estimate) -> dict[str, float | None]:
    return {name: found if np.isfinite(found := getattr(value, name)) else None for name in ("value", "low", "high")}


def new_figures(
    champion: RewardScorer, challenger: RewardScorer, served: Sequence[Served], labels: Sequence[StepLabel],
    outcomes: Sequence[Outcome], trust: Trust, config: Config,
) -> dict[str, Any]:
    """`new/…` on held-out trajectories: `new/labels` steps that trusted people judged; the champion's Brier score of
    them less the challenger's (`new/gain`); each model's calibration error; and the same gain in saying how
    trajectories end (`new/outcome_gain`), of `new/outcomes` that trusted reporters told, by which the share
    `new/success` of them succeeds. Each counts one over its chance, intervals are over questions.

    Args:
        served: held out of training.
        labels: people's, of served trajectories.
    """
    texts = {one.trajectory.id: one for one in served}
    believed = [row for row in trusted(labels, trust) if row.trajectory_id in texts]
    picked = {(row.trajectory_id, row.step_index): chance_of(row) for row in believed}
    told = [one for one in outcomes if one.trajectory in texts and is_heard(one.reporter, trust)]
    names = sorted({name for name, _ in picked} | {one.trajectory for one in told})
    said = both(champion, challenger, [(texts[name].problem.prompt, texts[name].trajectory.steps) for name in names])
    scores = {model: dict(zip(names, (one.step_scores for one in found), strict=True)) for model, found in said.items()}
    judged_ = [(key, right) for key, right in sorted(human_verdicts(believed).verdicts.items())
               if key[1] < len(scores[CHAMPION][key[0]])]
    rows = _Rows([texts[name].problem.id for (name, _), _ in judged_], [picked[key] for key, _ in judged_],
                 [right for _, right in judged_],
                 {model: [table[name][step] for (name, step), _ in judged_] for model, table in scores.items()})
    ends = _Rows([texts[one.trajectory].problem.id for one in told],
                 [one.chance * texts[one.trajectory].chance for one in told], [one.success for one in told],
                 {model: [float(np.prod(table[one.trajectory])) for one in told] for model, table in scores.items()})
    figures: dict[str, Any] = {
        "new/labels": len(judged_), "new/gain": rows.gain(config.seed), "new/outcomes": len(told),
        "new/outcome_gain": ends.gain(config.seed), "new/success": _of(success(served, told, config.seed))}
    return figures | {f"new/{model}/ece": rows.ece(model, config.evaluate.bins, config.seed) for model in scores}


@dataclass(frozen=True, slots=True)
class _Rows:
    """Verdicts beside what each model gave them.

    Attributes:
        questions: of each.
        chance: that it is here.
        right: the verdict.
        scores: model → probability of it.
    """

    questions: Sequence[str]
    chance: Sequence[float]
    right: Sequence[bool]
    scores: Mapping[str, Sequence[float]]

    def gain(self, seed: int) -> dict[str, float | None]:
        """The champion's mean squared error less the challenger's."""
        right = np.asarray(self.right, dtype=np.float64)
        errors = {model: (np.asarray(found) - right) ** 2 for model, found in self.scores.items()}
        return self._estimate(
            lambda weights: float(weights @ (errors[CHAMPION] - errors[CHALLENGER]) / weights.sum()), seed, False)

    def ece(self, model: str, bins: int, seed: int) -> dict[str, float | None]:
        """A model's expected calibration error; its interval is shifted by what resampling adds to it."""
        def error(weights: Floats) -> float:
            kept = weights > 0
            return expected_calibration_error(np.asarray(self.scores[model])[kept], np.asarray(self.right)[kept], bins,
                                              weights[kept])

        return self._estimate(error, seed, True)

    def _estimate(self, of: Callable[[Floats], float], seed: int, centred: bool) -> dict[str, float | None]:
        if not self.questions:
            return {"value": None, "low": None, "high": None}
        owner = np.unique(list(self.questions), return_inverse=True)[1]
        weights, count = 1 / np.asarray(self.chance, dtype=np.float64), int(owner.max()) + 1
        rng, value = np.random.default_rng(seed), of(weights)
        drawn = []
        for _ in range(RESAMPLES):
            times = np.bincount(rng.integers(count, size=count), minlength=count)
            drawn.append(of(weights * times[owner]))
        found = np.array(drawn)
        if centred:
            found = np.maximum(found - found.mean() + value, 0)
        low, high = np.percentile(found, INTERVAL)
        return {"value": value, "low": float(low), "high": float(high)}


def probe_figures(champion: RewardScorer, challenger: RewardScorer, old: Old, config: Config) -> dict[str, Any]:
    """`champion/probe/…` and `challenger/probe/…`: of wrong chains that both find wrong the share that passes with a
    suffix; and `probe/suffix_rise`, the challenger's less the champion's with its interval over chains. Of all wrong
    chains `…/suffix/passed_before` is the share that passes as it is. Without an oracle a chain with a wrong answer is
    wrong in its last step."""
    from prm_core.evaluation.probe.suffixes import has_room, suffix_figures, worth

    if not (config.probe.suffix_chains and config.adapt.suffix_chains):
        return {}
    settings = dataclasses.replace(config.probe, suffix_chains=config.adapt.suffix_chains)
    threshold, scorers = config.serve.threshold, {CHAMPION: champion, CHALLENGER: challenger}
    chains = [judged_or_answered(chain.trajectory.id, old.problems["dev"][chain.problem], chain.trajectory.steps,
                                 chain.right)
              for chain in first_per_problem([one for one in old.chains["dev"] if one.trajectory.steps], 1)]
    wrong = [chain for chain in pick_chains(chains, 1, config.seed) if not chain.sound]
    said = both(champion, challenger, [(chain.prompt, chain.steps) for chain in wrong])
    found = {name: [worth(score, chain.first_error, settings.aggregate).chain
                    for chain, score in zip(wrong, scores, strict=True)] for name, scores in said.items()}
    # What one of them has no room for is left out for both, before so many are taken.
    tried = [chain for row, chain in enumerate(wrong) if all(
        found[name][row] < threshold and has_room(scorer.encoder, chain, settings.suffix_tokens)
        for name, scorer in scorers.items())][: settings.suffix_chains]
    figures: dict[str, Any] = {}
    passed: dict[str, dict[str, bool]] = {}
    for name, scorer in scorers.items():
        told, best = suffix_figures(scorer, tried, settings, threshold, config.seed)
        figures |= {f"{name}/{key}": value for key, value in told.items()}
        if wrong:
            figures[f"{name}/probe/suffix/passed_before"] = float(np.mean(np.array(found[name]) >= threshold))
        passed[name] = {one.chain.name: one.after.chain >= threshold for one in best}
    names = sorted(set.intersection(*map(set, passed.values())))
    if names:
        rises = [passed[CHALLENGER][name] - passed[CHAMPION][name] for name in names]
        figures["probe/suffix_rise"] = _of(Bootstrap(len(names), RESAMPLES, config.seed).estimate(
            metrics.ratio(rises, np.ones(len(names)))))
    return figures

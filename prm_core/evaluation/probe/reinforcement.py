"""A short training of a policy that a reward model's scores alone pay: does what they stand for rise with them?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prm_core.config import PolicyTrainingConfig, ProbeConfig
from prm_core.domains import DOMAINS
from prm_core.evaluation.probe.bounds import OUTCOME_FALL
from prm_core.sampling.policy import Policy
from prm_core.scoring.scorer import ChainScorer
from prm_core.training.policy.loop import train_policy
from prm_core.types import Problem

# Figure of a policy's chains → its name here.
FIGURES = {"reward/outcome": "outcome", "reward/process": "process", "reward/paid": "paid", "chain/steps": "steps"}


def scores_alone(given: PolicyTrainingConfig, probe: ProbeConfig) -> PolicyTrainingConfig:
    """The configured training without anything that knows an outcome: no outcome reward, gate, bonus or filter; and
    without rules, which nobody judges here.

    The guard looks at fewer updates where there are too few for it; it is what is tried, beside the model.
    """
    paid = replace(given.advantages, outcome_weight=0.0, process_weight=1.0, gate=False, right_bonus=0.0,
                   chain_filter="none", left_out=0)
    return replace(given, updates=max(1, probe.updates), warmup_updates=min(given.warmup_updates, probe.updates // 2),
                   advantages=paid, eval_every=0, constraint=replace(given.constraint, kind="none"),
                   guard=replace(given.guard, window=min(given.guard.window, probe.updates // 2)))


def reinforcement_figures(
    policy: Policy, scorer: ChainScorer, problems: Sequence[Problem], settings: PolicyTrainingConfig,
    before: Mapping[str, float], measure: Callable[[], Mapping[str, float]], *, batch_size: int, seed: int, work: Path,
    report: Callable[[dict[str, float], int], None],
) -> dict[str, float | str]:
    """`probe/policy/<figure>_before` and `_after` of outcome, process (mean step score), paid (what the form pays) and
    steps of a chain, `probe/policy/outcome_fall`, how many updates there were, and whether the guard ended them: 1 or
    0 in `alarmed`, and why in `alarm`.

    Args:
        policy: is trained in place.
        problems: that it is trained on.
        settings: of `scores_alone`.
        before: figures of the policy on other problems.
        measure: makes the same figures of the policy as it is.
    """
    found: dict[str, float | str] = {}
    trained = train_policy(policy, scorer, DOMAINS, problems, settings, dev=(), batch_size=batch_size, seed=seed,
                           work=work, report=report)
    after = measure()
    for figure, name in FIGURES.items():
        found |= {f"probe/policy/{name}_before": before[figure], f"probe/policy/{name}_after": after[figure]}
    found |= {OUTCOME_FALL: before["reward/outcome"] - after["reward/outcome"],
              "probe/policy/updates": len(trained.history), "probe/policy/alarmed": float(trained.alarm is not None)}
    return found | ({"probe/policy/alarm": trained.alarm} if trained.alarm else {})

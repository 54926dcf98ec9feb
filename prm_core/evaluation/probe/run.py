"""The probe as a whole: a policy's chains on held-out problems, and the three parts on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prm_core.config import Config
from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.evaluation.adversarial.gold_chains import judged_or_answered, pick_chains
from prm_core.evaluation.probe.edits import edit_figures
from prm_core.evaluation.probe.reinforcement import reinforcement_figures, scores_alone
from prm_core.evaluation.probe.suffixes import Found, suffix_figures
from prm_core.sampling.policy import Policy
from prm_core.scoring.scorer import LoadedScorer, RewardScorer
from prm_core.training.policy.experience import Rewarded, sample_and_score, to_experience
from prm_core.types import Problem


def probe_model(
    policy: Policy, scorer: LoadedScorer, train: Sequence[Problem], dev: Sequence[Problem], config: Config, *,
    work: Path, report: Callable[[dict[str, float], int], None],
) -> tuple[dict[str, float | str], list[Found]]:
    """The figures `probe/…` of a reward model, and the suffixes that were found for wrong chains.

    Args:
        policy: writes the chains; trained in place where `probe.updates` says so.
        scorer: of any kind that scores steps; only in our own a suffix is searched for.
        train, dev: the policy is trained on the first, everything is measured on the second.

    Raises InputError for an outcome model, and where there is no problem of either kind.
    """
    probe = config.probe
    if scorer.kind == "outcome":
        raise InputError("an outcome reward model scores no steps, and can pay for none; probe a process model")
    if not dev or (probe.updates and not train):
        raise InputError("a probe needs dev problems, and training problems where probe.updates is above 0")
    settings = scores_alone(config.train_policy, probe)
    problems = {problem.id: problem for problem in dev[: probe.problems]}

    def sample() -> list[Rewarded]:
        # The same seed before and after training: less of the difference is luck.
        return sample_and_score(policy, scorer, DOMAINS, list(problems.values()), settings,
                                batch_size=config.generate.batch_size, seed=config.seed)

    def figures_of(chains: list[Rewarded]) -> Mapping[str, float]:
        return to_experience(chains, policy.encoder.pad_id, settings, settings.kl_coef).figures

    sampled = sample()
    gold = pick_chains([judged_or_answered(f"{chain.problem}/{number}", problems[chain.problem], chain.steps,
                                           bool(chain.outcome))
                        for number, chain in enumerate(sampled) if chain.steps], 1, config.seed)
    figures: dict[str, float | str] = dict(edit_figures(scorer, gold, probe.aggregate, config.seed))
    found: list[Found] = []
    if isinstance(scorer, RewardScorer) and probe.suffix_chains:
        more, found = suffix_figures(scorer, gold, probe, config.serve.threshold, config.seed)
        figures |= more
    if probe.updates:
        figures |= reinforcement_figures(
            policy, scorer, train, settings, figures_of(sampled), lambda: figures_of(sample()),
            batch_size=config.generate.batch_size, seed=config.seed, work=work, report=report)
    return figures, found

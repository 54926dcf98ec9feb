"""Reward models and language models as judges."""

from __future__ import annotations

from dataclasses import replace

from prm_core.errors import InputError
from prm_core.evaluation.judges.base import JUDGES, Case, Judge, Judgement, Setup
from prm_core.labeling.strategies.base import Chain
from prm_core.labeling.strategies.judge import ChainJudge
from prm_core.labeling.strategies.judge_clients import LocalClient
from prm_core.scoring.domain import unmoderated
from prm_core.scoring.foreign import load_any_scorer
from prm_core.scoring.scorer import ChainScore, RewardScorer
from prm_core.turns import with_tools
from prm_core.types import Problem, Step, Trajectory

PRM, ORM, LLM = "prm", "orm", "llm"


class RewardModelJudge(Judge):
    """A reward model that scores each step in one pass, of ours or of another project.

    Scores are those before moderation where the model cannot judge the chain: a threshold chosen elsewhere compares
    with them.
    """

    kind = "process"

    def __init__(self, source: str, setup: Setup) -> None:
        if not source:
            raise InputError("a reward model as a judge needs its name: NAME=FOLDER, or NAME=models:/…")
        self.scorer = load_any_scorer(setup.folder(source), device=setup.config.models.device, batch_size=16)
        self.version = self.scorer.version
        self.about = f"{self.scorer.kind} reward model {source}"
        if (self.scorer.kind == "outcome") != (self.kind == "outcome"):
            raise InputError(f"{source}: is a model of kind {self.scorer.kind}; the judge {ORM} takes an outcome "
                             f"model, and {PRM} one that scores steps")
        # The first pass pays for lazy initialisation.
        self.scorer.score([("1 + 1?", (Step("2"),))])

    def judge(self, case: Case, seed: int) -> Judgement:
        """See `Judge.judge`; steps beyond the model's context have no score."""
        said = self.scorer.score([(case.asked, case.steps)])[0]
        scores = _compared(said)
        return Judgement((*scores, *(None,) * said.truncated_steps), tokens_read=self._tokens(case.asked, case.steps))

    def _tokens(self, prompt: str, steps: tuple[Step, ...]) -> int:
        if isinstance(self.scorer, RewardScorer):
            return len(self.scorer.encoder.encode(prompt, steps, may_be_empty=True).ids)
        return len(self.scorer.encoder.encode(prompt, steps).ids)


class OutcomeModelJudge(RewardModelJudge):
    """An outcome reward model that reads the trajectory as far as each step: P(the run ends right), as it stands then.

    Each prefix is read on its own, and counts.
    """

    kind = "outcome"

    def judge(self, case: Case, seed: int) -> Judgement:
        """See `Judge.judge`; steps beyond the model's context have no score."""
        prefixes = [case.steps[: end + 1] for end in range(len(case.steps))]
        said = self.scorer.score([(case.asked, prefix) for prefix in prefixes])
        scores = tuple(None if one.truncated_steps else _compared(one)[0] for one in said)
        return Judgement(scores, tokens_read=sum(self._tokens(case.asked, prefix) for prefix in prefixes))


class LanguageModelJudge(Judge):
    """A language model that is asked once a trajectory, as `labeling/strategies/judge.py` asks it: an endpoint or a
    local model, by the settings of `label.judge`."""

    decides = True

    def __init__(self, source: str, setup: Setup) -> None:
        settings = setup.config.label.judge
        self.asking = ChainJudge(replace(settings, model=source or settings.model), setup.config.models)
        self.version = self.asking.client.version
        self.prices = settings.input_price, settings.output_price
        where = f" at {settings.endpoint}" if settings.endpoint else ""
        self.about = f"language model {self.asking.settings.model}{where}"
        if isinstance(self.asking.client, LocalClient):
            # Loads it: no trajectory's time.
            _ = self.asking.client.model

    def judge(self, case: Case, seed: int) -> Judgement:
        """See `Judge.judge`; a trajectory without a usable answer has no verdict, and the reason says why."""
        problem = Problem(case.problem, "", with_tools(case.prompt, case.tools), "")
        run = Trajectory(case.id, case.problem, "", case.steps, None, None, seed)
        labels = self.asking.label([Chain(problem, run)], seed)
        return Judgement(tuple(label.value for label in labels), tuple(label.is_correct for label in labels),
                         tuple(label.reasoning for label in labels), self.asking.usage.prompt_tokens,
                         self.asking.usage.completion_tokens)


def _compared(said: ChainScore) -> tuple[float, ...]:
    return tuple(unmoderated(said.step_scores)) if said.out_of_domain else said.step_scores


JUDGES.register(PRM)(RewardModelJudge)
JUDGES.register(ORM)(OutcomeModelJudge)
JUDGES.register(LLM)(LanguageModelJudge)

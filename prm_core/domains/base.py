"""What a domain is: how problems look, how answers are read and compared, and what replies to an agent that works on
them. Judging steps is the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from prm_core.registry import Registry
from prm_core.types import Problem, Step, Trajectory

# (split, count, seed, prompts to leave out) → problems with worked solutions.
MakeProblems = Callable[[str, int, int, Collection[str]], list[Problem]]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a turn.

    Attributes:
        step: the turn with what was heard: results of its calls, what a user said.
        ended: whether the run is over.
    """

    step: Step
    ended: bool


@dataclass(frozen=True, slots=True)
class Environment:
    """What an agent works in: tools, and people who answer. All of it is decided by the problem and the steps alone, so
    that any prefix of a run can be replayed and gone on from.

    Attributes:
        tools: the tools it offers, as JSON of a list of function definitions.
        reply: what came of the last of the steps, at least one; the state is rebuilt by replaying what the agent wrote
            in all of them. What an agent wrote never raises: a call that means nothing has a failed result.
        succeeded: whether the steps end a run as the problem wants it.
        speaker: the name of the agent who is next after the steps, which are none or a run that has not ended; empty
            where one agent does it all.
    """

    tools: str
    reply: Callable[[Problem, Sequence[Step]], Reply]
    succeeded: Callable[[Problem, Sequence[Step]], bool]
    speaker: Callable[[Problem, Sequence[Step]], str] = lambda problem, steps: ""


@dataclass(frozen=True, slots=True)
class Domain:
    """A kind of problem.

    Attributes:
        levels: level of difficulty → what makes its problems; empty where problems come from outside.
        shifted: the same of problems unlike the level's own, which no training sees; a level may have none.
        read_answer: the answer stated by a chain's last step, None when it states none.
        same_answer: whether an answer says the same as the reference; symmetric.
        answer_classes: which of several answers are one and the same, whatever their order: a class number for each.
        environment: what replies to an agent; None where a chain is written without replies.
    """

    levels: Mapping[str, MakeProblems]
    shifted: Mapping[str, MakeProblems]
    read_answer: Callable[[str], str | None]
    same_answer: Callable[[str, str], bool]
    answer_classes: Callable[[Sequence[str]], Sequence[int]]
    environment: Environment | None = None


DOMAINS: Registry[Domain] = Registry("domain")


def make_trajectory(
    domain: Domain, problem: Problem, texts: list[str], *, trajectory_id: str, policy: str, seed: int
) -> Trajectory:
    """A trajectory from step texts, its answer read from the last step and compared with the problem's."""
    answer = domain.read_answer(texts[-1]) if texts else None
    return Trajectory(
        id=trajectory_id,
        problem_id=problem.id,
        policy=policy,
        steps=tuple(Step(text) for text in texts),
        answer=answer,
        outcome=answer is not None and domain.same_answer(answer, problem.answer),
        seed=seed,
    )

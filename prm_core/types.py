"""The domain's nouns: problem, step, trajectory, step label.

Everything else in the project speaks in these types; this module imports nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a known answer.

    Attributes:
        id: unique within a data folder.
        domain: name of the registered domain that knows how to read answers (and, where it can, judge steps).
        prompt: the question as the policy sees it.
        answer: the reference answer, compared by value.
        meta: anything else; `meta["solution"]` is a worked solution (list of steps) where there is one, and
            `meta["mistakes"]` the indices of its steps that go wrong and are put right, which nobody is to learn.
    """

    id: str
    domain: str
    prompt: str
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that an agent called, and what came back.

    Attributes:
        name: the tool's.
        arguments: JSON of an object, or whatever the agent wrote in its place.
        result: what came back, None where nothing did (yet); never scored.
        failed: whether the result says that the call went wrong.
        id: its name in the source, empty where it has none; no model reads it.
    """

    name: str
    arguments: str = "{}"
    result: str | None = None
    failed: bool = False
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody else said between two steps: context, never scored.

    Attributes:
        role: `user`, `system`, or `agent` for another agent.
        text: what was said.
        name: whose it is, empty where the role says enough.
    """

    role: str
    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a chain: what one agent did in one turn, and what came of it.

    Attributes:
        text: what the agent said; with `reasoning` and `calls`, this is what is scored.
        observation: what the environment replied to all of it; context, never scored.
        agent: who acted, empty for a single policy.
        reasoning: what the agent thought before it spoke.
        calls: tools it called, in order, with their results, which are context.
        context: what others said after it and before the next step, in order.
        ref: where it stands in its source (span id, message index, step id, event id); no model reads it.
    """

    text: str
    observation: str = ""
    agent: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    context: tuple[Message, ...] = ()
    ref: str = ""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A chain of steps sampled for one problem.

    Attributes:
        id: unique over all trajectories of a workspace.
        problem_id: the problem it answers.
        policy: hash of the policy that sampled it, or the name of its human author.
        steps: in order; the final answer is the last step.
        answer: the answer read from the last step, None when the chain stops without one.
        outcome: whether `answer` equals the problem's, None when that is unknown.
        seed: the seed its shard was sampled with.
        tools: the tools it was offered, as JSON of a list of function definitions; empty for none.
        source: the format and record it was read from, empty for a sampled one.
        parent: `trajectory/step` that it branches off or was started by, empty for none.
        meta: cost, tokens, times and whatever else is known of it; never scored.
    """

    id: str
    problem_id: str
    policy: str
    steps: tuple[Step, ...]
    answer: str | None
    outcome: bool | None
    seed: int
    tools: str = ""
    source: str = ""
    parent: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepLabel:
    """One strategy's verdict on one step.

    Attributes:
        trajectory_id, step_index, strategy: the key.
        value: the strategy's estimate in [0, 1] that the step is right (or its prefix can still succeed), None if
            it abstains.
        is_correct: the verdict, None where the strategy cannot tell.
        confidence: probability in [0, 1] that the verdict is right.
        tokens: tokens generated to reach it.
        reasoning: one line a reviewer can read.
        lineage: what made it, as JSON: strategy and its version, model (hash or name), parameters, seed; empty for
            people.
    """

    trajectory_id: str
    step_index: int
    strategy: str
    value: float | None
    is_correct: bool | None
    confidence: float
    tokens: int
    reasoning: str
    lineage: str = ""


@dataclass(frozen=True, slots=True)
class StepPreference:
    """Two next steps after the same prefix, one worth more than the other: what a Bradley-Terry loss trains on.

    Attributes:
        problem_id: the problem.
        steps: the prefix, may be empty.
        chosen, rejected: the next steps.
        chosen_value, rejected_value: Monte-Carlo values of the prefix with either, in [0, 1].
        chosen_rollouts, rejected_rollouts: rollouts each value was estimated from.
    """

    problem_id: str
    steps: tuple[Step, ...]
    chosen: Step
    rejected: Step
    chosen_value: float
    rejected_value: float
    chosen_rollouts: int
    rejected_rollouts: int

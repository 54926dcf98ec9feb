"""The exact judge of steps, for measuring and for standing in as the human reviewer.

No labeller or trainer may import this module (import-linter and a test hold that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prm_core.domains import arithmetic, errands
from prm_core.domains.errands import conduct, judge
from prm_core.maths.answers import read_stated_answer
from prm_core.registry import Registry
from prm_core.types import Problem, Step

Oracle = Callable[[Problem, Sequence[Step]], list[bool]]
ORACLES: Registry[Oracle] = Registry("oracle")
# Of domains with an environment: 1 for a needed turn, 0 for a redundant one, -1 for a wrong or harmful one, as in
# AgentProcessBench (Fan et al. 2026). Their oracle takes the first two for right.
Grader = Callable[[Problem, Sequence[Step]], list[int]]
GRADERS: Registry[Grader] = Registry("oracle of three values")
for _name in (errands.NAME, errands.RULED):
    GRADERS.register(_name)(judge.grade)
# Of domains under rules: the ids of those that each turn breaks, whatever comes of it.
Witness = Callable[[Problem, Sequence[Step]], list[frozenset[str]]]
WITNESSES: Registry[Witness] = Registry("oracle of rules")
WITNESSES.register(errands.RULED)(conduct.breaches)


@ORACLES.register(arithmetic.NAME)
def judge_arithmetic(problem: Problem, steps: Sequence[Step]) -> list[bool]:
    """Whether each step is right given the problem and the steps before it.

    An arithmetic step is right when it accounts for the event whose turn it is, starts from the value the step before
    it stated, uses that event's operation and quantity, and calculates right. The answer step is right when every
    event has been accounted for and it states the value the step before stated. A step after a wrong one is judged
    against what stands before it, so consistent work on a wrong value counts as right; a chain that stops without an
    answer is wrong at its last step.
    """
    events = list(arithmetic.events_of(problem))
    value = problem.meta["start"]
    verdicts = []
    for index, step in enumerate(steps):
        parsed = arithmetic.parse_step(step.text)
        if parsed is None:
            stated = read_stated_answer(step.text)
            verdicts.append(index == len(events) and stated == str(value))
            continue
        right = index < len(events) and (
            parsed.phrase == events[index].phrase
            and (parsed.left, parsed.operation, parsed.right) == (value, events[index].operation, events[index].operand)
            and arithmetic.calculate(parsed.left, parsed.operation, parsed.right) == parsed.result
        )
        verdicts.append(right)
        value = parsed.result
    if verdicts and arithmetic.parse_step(steps[-1].text) is not None:
        verdicts[-1] = False
    return verdicts


@ORACLES.register(errands.RULED)
@ORACLES.register(errands.NAME)
def judge_errands(problem: Problem, steps: Sequence[Step]) -> list[bool]:
    """Whether each turn is right, given what stands before it: needed, or redundant and without harm."""
    return [value >= 0 for value in judge.grade(problem, steps)]


def is_lucky(succeeded: bool, verdicts: Sequence[bool]) -> bool:
    """Whether a success is not earned: it has a wrong step."""
    return succeeded and not all(verdicts)


def first_error(verdicts: Sequence[bool]) -> int:
    """0-based index of the first wrong step, -1 when every step is right."""
    return next((index for index, right in enumerate(verdicts) if not right), -1)

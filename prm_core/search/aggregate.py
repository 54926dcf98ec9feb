"""From step scores to one score per chain: aggregations, by name. Choosing among chains is in `selection.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prm_core.errors import InputError
from prm_core.registry import Registry

if TYPE_CHECKING:
    from prm_core.scoring.scorer import ChainScore

Aggregation = Callable[[Sequence[float]], float]

# An aggregation must fit what the scores mean: scores that detect a wrong step go with min or prod, scores that
# estimate "can this prefix still succeed" with last (METHODS 3).
AGGREGATIONS: Registry[Aggregation] = Registry("aggregation")


def _checked(step_scores: Sequence[float]) -> list[float]:
    if len(step_scores) == 0:
        raise InputError("a chain without step scores has no overall score; give at least one step")
    return [float(score) for score in step_scores]


@AGGREGATIONS.register("min")
def aggregate_min(step_scores: Sequence[float]) -> float:
    """The weakest step's score. Raises InputError when there is no step, as every aggregation does."""
    return min(_checked(step_scores))


@AGGREGATIONS.register("prod")
def aggregate_prod(step_scores: Sequence[float]) -> float:
    """The product: the probability that every step is right, were the steps independent."""
    return math.prod(_checked(step_scores))


@AGGREGATIONS.register("mean")
def aggregate_mean(step_scores: Sequence[float]) -> float:
    """The arithmetic mean; blind to how long a chain is, so one bad step among many hardly shows."""
    scores = _checked(step_scores)
    return math.fsum(scores) / len(scores)


@AGGREGATIONS.register("last")
def aggregate_last(step_scores: Sequence[float]) -> float:
    """The last step's score."""
    return _checked(step_scores)[-1]


# A chain none or not all of whose steps were scored has no evidence for its end: it ranks last.
NO_EVIDENCE = 0.0


def chain_value(score: ChainScore, kind: str, aggregate: str) -> float:
    """What a whole chain is chosen by: the aggregate of its steps' scores or values, and where a model gives the
    probability that the chain ends right, the mean of both; of an outcome model its score. NO_EVIDENCE where not all of
    the chain was read.

    Args:
        kind: of the model, as a scorer has it.
        aggregate: name of the aggregation of step scores.
    """
    if score.truncated_steps:
        return NO_EVIDENCE
    if kind == "outcome":
        return score.step_scores[-1]
    value = AGGREGATIONS[aggregate](score.step_scores)
    return value if score.outcome_score is None else (value + score.outcome_score) / 2

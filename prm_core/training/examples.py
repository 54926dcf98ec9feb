"""From labels to training examples: targets, tokens, and the split by problem."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prm_core.errors import InputError
from prm_core.models.encoder import EncodedChain, Encoder
from prm_core.types import Problem, Step, StepLabel, StepPreference, Trajectory

log = logging.getLogger(__name__)
IGNORED = math.nan
# Strategies whose value is a share of successful rollouts from the step.
VALUE_STRATEGIES = ("rollout", "mcts")
# Kinds of models that are trained on the outcomes of chains.
OUTCOME_KINDS = ("outcome", "implicit")


@dataclass(frozen=True, slots=True)
class Example:
    """A chain with its targets.

    Attributes:
        problem_id: splits go by problem, so that no problem is on both sides.
        prompt, steps: the chain.
        targets: each a probability or value, NaN where there is none. Process: of each step. Advantage: of the bare
            prompt, then of each prefix. Outcome: one, of the chain.
        weight: how much each of its targets counts.
        copied: whether copies of it with inserted steps may be trained too, each of weight 1.
    """

    problem_id: str
    prompt: str
    steps: tuple[Step, ...]
    targets: tuple[float, ...]
    weight: float = 1.0
    copied: bool = True


@dataclass(frozen=True, slots=True)
class Pair:
    """Two next steps after the same prefix, the chosen one better."""

    problem_id: str
    prompt: str
    steps: tuple[Step, ...]
    chosen: Step
    rejected: Step


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as tokens, with targets only for the steps that fit."""

    chain: EncodedChain
    targets: tuple[float, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair as tokens: two chains that differ in their last step."""

    chosen: EncodedChain
    rejected: EncodedChain


def build_examples(
    kind: str,
    problems: Mapping[str, Problem],
    trajectories: Iterable[Trajectory],
    labels: Sequence[StepLabel],
    *,
    soft: bool,
) -> list[Example]:
    """One example for each trajectory that has a label, the same trajectories for every kind.

    Args:
        kind: `process` takes a target from each label (the value when `soft`, else the verdict; a soft 0.9 stays 0.9);
            `outcome` and `implicit` take the trajectory's outcome.
        labels: joined to steps by (trajectory_id, step_index); steps without one are no targets.

    Raises InputError when a labelled trajectory or its problem is not there.
    """
    by_step = {(label.trajectory_id, label.step_index): label for label in labels}
    labelled = {label.trajectory_id for label in labels}
    examples = []
    for trajectory in trajectories:
        if trajectory.id not in labelled:
            continue
        if kind in OUTCOME_KINDS:
            targets = (IGNORED if trajectory.outcome is None else float(trajectory.outcome),)
        else:
            found = [by_step.get((trajectory.id, index)) for index in range(len(trajectory.steps))]
            targets = tuple(_target(label, soft) for label in found)
        examples.append(Example(trajectory.problem_id, _prompt(problems, trajectory), trajectory.steps, targets))
        labelled.remove(trajectory.id)
    if labelled:
        raise InputError(f"{len(labelled)} labelled trajectories are not among the generated ones ({min(labelled)}); "
                         "run the stages from label on again")
    return examples


def build_values(
    problems: Mapping[str, Problem], trajectories: Sequence[Trajectory], labels: Iterable[StepLabel]
) -> list[Example]:
    """Value targets of the prompt and of every prefix of each trajectory with a known outcome.

    A prefix's target is its Monte-Carlo value where rollouts were sampled from it, else the outcome of the chain it is
    of, which is one such rollout; the prompt's is the mean outcome of its chains.

    Args:
        labels: of all strategies; those that sample rollouts are read.
    """
    values = {(label.trajectory_id, label.step_index): label.value for label in labels
              if label.strategy in VALUE_STRATEGIES and label.value is not None}
    known = [trajectory for trajectory in trajectories if trajectory.outcome is not None]
    outcomes: dict[str, list[bool]] = {}
    for trajectory in known:
        outcomes.setdefault(trajectory.problem_id, []).append(bool(trajectory.outcome))
    examples = []
    for trajectory in known:
        own = outcomes[trajectory.problem_id]
        targets = (sum(own) / len(own), *(values.get((trajectory.id, index), float(bool(trajectory.outcome)))
                                          for index in range(len(trajectory.steps))))
        examples.append(Example(trajectory.problem_id, _prompt(problems, trajectory), trajectory.steps, targets))
    return examples


def build_pairs(problems: Mapping[str, Problem], preferences: Iterable[StepPreference]) -> list[Pair]:
    """The preferences of these problems as training pairs."""
    return [Pair(row.problem_id, problems[row.problem_id].prompt, row.steps, row.chosen, row.rejected)
            for row in preferences if row.problem_id in problems]


def _prompt(problems: Mapping[str, Problem], trajectory: Trajectory) -> str:
    if trajectory.problem_id not in problems:
        raise InputError(f"trajectory {trajectory.id} is of problem {trajectory.problem_id}, which is not among the "
                         "training problems; generate again after changing data/")
    return problems[trajectory.problem_id].prompt


def _target(label: StepLabel | None, soft: bool) -> float:
    if label is None:
        return IGNORED
    value = label.value if soft else label.is_correct
    return IGNORED if value is None else float(value)


def encode_examples(
    encoder: Encoder, examples: Sequence[Example], kind: str
) -> tuple[list[Encoded], dict[str, int]]:
    """Encoded examples and what was lost: steps cut by the context, labels lost with them, chains left without any.

    Raises InputError when no label is left at all.
    """
    encoded, lost = [], {"truncated_steps": 0, "truncated_labels": 0, "dropped_chains": 0}
    for example in examples:
        chain = encoder.encode(example.prompt, example.steps, may_be_empty=True)
        lost["truncated_steps"] += chain.truncated_steps
        targets = example.targets
        if kind not in OUTCOME_KINDS:
            kept = len(targets) - chain.truncated_steps
            lost["truncated_labels"] += sum(not math.isnan(target) for target in targets[kept:])
            targets = targets[:kept]
        elif chain.truncated_steps:
            # A chain that lost its end has no outcome at the step it is read at.
            targets = (IGNORED,)
        # No step fits: the prompt, which may be longer than the context, is no chain.
        if not chain.step_ends or all(math.isnan(target) for target in targets):
            lost["dropped_chains"] += 1
            continue
        encoded.append(Encoded(chain, targets, example.weight))
    if not encoded:
        raise InputError(f"no label is left to train the {kind} model on ({len(examples)} chains, {lost}); raise "
                         "encoder.max_length or check the training set")
    if any(lost.values()):
        log.warning("%s model: %s", kind, ", ".join(f"{count} {name}" for name, count in lost.items() if count))
    return encoded, lost


def encode_pairs(encoder: Encoder, pairs: Sequence[Pair], width: int) -> tuple[list[EncodedPair], int]:
    """Encoded pairs, and how many do not fit: both steps behind one prefix must fit `width` tokens."""
    encoded = []
    for pair in pairs:
        two = [encoder.encode(pair.prompt, (*pair.steps, step), may_be_empty=True)
               for step in (pair.chosen, pair.rejected)]
        if any(chain.truncated_steps for chain in two):
            continue
        if len(two[0].ids) + len(two[1].ids) - ([two[1].prompt_length - 1, *two[1].step_ends][-2] + 1) <= width:
            encoded.append(EncodedPair(*two))
    if len(encoded) < len(pairs):
        log.warning("%d of %d preference pairs do not fit %d tokens", len(pairs) - len(encoded), len(pairs), width)
    return encoded, len(pairs) - len(encoded)


T = TypeVar("T", Example, Pair)


def split_by_problem(examples: Sequence[T], dev_share: float, seed: int) -> tuple[list[T], list[T]]:
    """(train, dev), at least one problem on each side and none on both."""
    ids = sorted({example.problem_id for example in examples})
    random.Random(f"split/{seed}").shuffle(ids)
    held = set(ids[: min(max(1, round(dev_share * len(ids))), len(ids) - 1)])
    train = [example for example in examples if example.problem_id not in held]
    return train, [example for example in examples if example.problem_id in held]

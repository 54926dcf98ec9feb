"""A small shop: 2 dozen pens of an open color, else blue, for at most 30 coins."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prm_core.config import EncoderConfig
from prm_core.domains.errands.seen import Seen
from prm_core.domains.errands.tasks import NAME, Item, Task, prompt_of, read_answer, task_of, to_meta
from prm_core.domains.errands.teamwork import next_turn
from prm_core.domains.errands.tools import TOOLS, make_call
from prm_core.domains.errands.world import World, reply, succeeded
from prm_core.models.encoder import Encoder
from prm_core.models.tokenizer import train_tokenizer
from prm_core.platform.steps import parse_steps, texts, to_record
from prm_core.sampling.policy import Policy
from prm_core.sampling.sampler import Continuation, Prefix
from prm_core.types import Problem, Step, Trajectory

# Noise with which no tool fails, and with which the first call does (and, tried apart, the next two).
CALM, BUSY = 31, 7
ITEMS = (Item(31, "red", "pens", 4, 6, 9), Item(52, "blue", "pens", 3, 8, 2), Item(74, "green", "pens", 5, 4, 9),
         Item(20, "red", "cups", 4, 6, 9))
RED, BLUE, GREEN, CUPS = (item.code for item in ITEMS)
TASK = Task("order", "pens", ("red", "blue"), 2, "dozen", 30, ("color",), ITEMS, CALM)


def problem(**changes: Any) -> Problem:
    """The shop's problem; `stock` is of the pens red, other changes are of the task."""
    stock = changes.pop("stock", None)
    task = replace(TASK, **changes)
    if stock is not None:
        task = replace(task, items=(replace(task.items[0], stock=stock), *task.items[1:]))
    return Problem("p", NAME, prompt_of(task, "Mia", "Ben"), task.ending()[1], {"task": to_meta(task)})


def call(name: str, *values: Any) -> Step:
    """A turn that calls a tool, its arguments in the order of their definition."""
    return Step("", calls=(make_call(name, **dict(zip(TOOLS[name][1], values, strict=True))),))


def run(of: Problem, steps: Sequence[Step]) -> list[Step]:
    """The turns with what was heard, one reply at a time."""
    heard: list[Step] = []
    for step in steps:
        heard.append(reply(of, [*heard, step]).step)
    return heard


ASK, SEARCH, LOOK = call("ask", "color"), call("search", "pens red"), call("look", RED)
CONVERT, PACK = call("convert", 2, "dozen"), call("pack", 24, 6)
MULTIPLY, ORDER = call("multiply", 4, 4), call("order", RED, 4)
DONE, IMPOSSIBLE = Step("Done."), Step("Not possible.")
WORKED = (ASK, SEARCH, LOOK, CONVERT, PACK, MULTIPLY, ORDER, DONE)
# A team's: the planner asks and plans, the worker does it, the checker lets it end or sends it back.
PLAN = Step('Order 2 dozen "pens red", else "pens blue", at most 30 coins.')
ACCEPT, SEND_BACK = Step("Right."), Step("Wrong.")
TEAM_WORKED = (ASK, PLAN, *WORKED[1:], ACCEPT)
# Five boxes where four do: from there on nobody gets it right.
SPOILT = (*WORKED[:4], call("pack", 24, 5), call("multiply", 5, 4), call("order", RED, 5), DONE)
SPEAKERS = (*["planner"] * 2, *["worker"] * 7, "checker")


def solved() -> Problem:
    """The shop's problem with its worked solution."""
    of = problem()
    return replace(of, meta={**of.meta, "solution": [to_record(step) for step in run(of, WORKED)]})


def trajectory(of: Problem, steps: Sequence[Step], trajectory_id: str, policy: str) -> Trajectory:
    """A run through these turns, which end it."""
    answer = read_answer(steps[-1].text)
    return Trajectory(trajectory_id, of.id, policy, tuple(run(of, steps)), answer, succeeded(of, steps), 0)


class TeamPolicy(Policy):
    """Writes what each of a team, or one agent alone, is to do next, or at a rate a text that is beside the point;
    without weights.

    Args:
        known: the problems that it may be asked about.
    """

    def __init__(self, known: Sequence[Problem], error_rate: float) -> None:
        self._known = {problem.prompt: problem for problem in known}
        self._error_rate = error_rate
        super().__init__(None, Encoder(train_tokenizer([*self._known, "The answer is 1.", *_texts(known)]),
                                       EncoderConfig(max_length=600)), "team")

    def continue_chains(
        self, chains: Sequence[Sequence[int]], prefixes: Sequence[Prefix], *, seed: int, **sampling: Any
    ) -> list[Continuation]:
        rng = random.Random(seed if isinstance(seed, int) else repr(seed))
        return [self._turn(chains[prefix.chain], rng) for prefix in prefixes]

    def _turn(self, ids: Sequence[int], rng: random.Random) -> Continuation:
        end = len(ids) - list(reversed(ids)).index(self.encoder.separator_id)
        prompt, steps = self.encoder.decode(ids[:end])
        world = World(task_of(self._known[prompt]))
        seen = Seen(world.task)
        for step in steps:
            seen.hear(world.turn(step)[1])
        step = next_turn(world, seen) if rng.random() >= self._error_rate else Step("The answer is 1.")
        [block] = self.encoder.encode_steps([replace(step, agent=world.speaker)])
        new = [token for token, written in block if written]
        new = new[: next(at for at, token in enumerate(new) if token in self.encoder.turn_ends) + 1]
        return Continuation(new, [0.0] * len(new), True)


def _texts(problems: Sequence[Problem]) -> list[str]:
    return [text for problem in problems for step in parse_steps(problem.meta["solution"], problem.id)
            for text in texts(step)]

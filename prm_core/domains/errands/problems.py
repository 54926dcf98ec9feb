"""Drawing errands from a seed, at a level of difficulty, with their worked solutions."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from prm_core.domains.errands.solutions import solve
from prm_core.domains.errands.tasks import (
    FORBIDDEN,
    NAME,
    PEOPLE,
    RULED,
    RULES,
    UNITS,
    Item,
    Task,
    boxes_for,
    prompt_of,
    to_meta,
)
from prm_core.domains.errands.teamwork import SLIPS, solve_as_team
from prm_core.platform.steps import to_record
from prm_core.types import Problem, Step


@dataclass(frozen=True, slots=True)
class Level:
    """A level of difficulty: what its errands are drawn from.

    Attributes:
        names: of people.
        things, colors: that the shop may have.
        shades: items of the shop, each the thing in another color.
        other_share: of the shops, those whose last item is another thing, in the color that is wanted first.
        goals: goal → how often it is drawn.
        numbers: of items, as (least, most + 1).
        most_pieces: of an amount.
        boxes, prices: sizes of boxes, and prices of them, as (least, most).
        unit_share: of the amounts in a unit.
        left_open: number of facts left open → how often it is drawn; as many as there are, where there are fewer.
        limit_share, else_share: of the orders that have a limit, and a second choice.
        both: whether an order may have both.
        dear_share, scarce_share: of the limits below the price, and of the items with too few boxes left.
        turned: whether the parts of an errand are told in another order.
        most_turns: of a worked solution.
        team: whether a planner, a worker and a checker do it, and not one agent.
        slip_share: of the teams' worked solutions, those with a turn that goes wrong and is put right.
        careless_share: under rules, how often a worked solution does not keep each of them; None without rules.
        forbidden_share: under rules, of the orders, those of what is not to be ordered.
    """

    names: tuple[str, ...]
    things: tuple[str, ...]
    colors: tuple[str, ...]
    shades: int
    other_share: float
    goals: Mapping[str, float]
    numbers: tuple[int, int]
    most_pieces: int
    boxes: tuple[int, int]
    prices: tuple[int, int]
    unit_share: float
    left_open: Mapping[int, float]
    limit_share: float
    else_share: float
    both: bool
    dear_share: float
    scarce_share: float
    turned: bool
    most_turns: int
    team: bool = False
    slip_share: float = 0.0
    careless_share: float | None = None
    forbidden_share: float = 0.0


STANDARD = Level(
    names=PEOPLE,
    things=("pens", "cups", "caps", "bags", "mugs", "pins", "balls", "hats"),
    colors=("red", "blue", "green", "black", "white", "pink"),
    shades=4, other_share=0.5,
    goals={"price": 0.35, "order": 0.55, "unit": 0.1},
    numbers=(2, 10), most_pieces=36, boxes=(3, 8), prices=(2, 6),
    unit_share=0.35,
    left_open={0: 0.5, 1: 0.5},
    limit_share=0.4, else_share=0.4, both=False,
    dear_share=0.3, scarce_share=0.3,
    turned=False,
    most_turns=9,
)
# Smaller errands: there is the plan to write and the check, and now and then something is done twice.
TEAM = replace(
    STANDARD, shades=3, goals={"price": 0.45, "order": 0.45, "unit": 0.1}, unit_share=0.25, left_open={0: 0.6, 1: 0.4},
    limit_share=0.3, else_share=0.25, dear_share=0.2, scarce_share=0.2, most_turns=11, team=True, slip_share=0.4,
)
LEVELS = {"standard": STANDARD, "team": TEAM}
# Shorter by what there is to do for the rules.
RULED_LEVELS = {"standard": replace(STANDARD, unit_share=0.25, limit_share=0.3, else_share=0.25, most_turns=10,
                                    careless_share=0.5, forbidden_share=0.15)}


def shifts(level: Level) -> tuple[Level, ...]:
    """The level with two questions to ask, with a limit and a second choice together, and told in another order: tools
    and words that all of its errands have, put together as in none of them."""
    return (
        replace(level, goals={"price": 0.4, "order": 0.6}, left_open={2: 1.0}),
        replace(level, goals={"order": 1.0}, limit_share=1.0, else_share=1.0, both=True,
                most_turns=level.most_turns + (0 if level.team else 2)),
        replace(level, turned=True),
    )


def _chosen(rng: random.Random, weights: Mapping[str, float] | Mapping[int, float]) -> str | int:
    return rng.choices(list(weights), list(weights.values()))[0]


def _draw_amount(rng: random.Random, level: Level, in_unit: bool) -> tuple[int, str]:
    if not in_unit:
        return rng.randint(level.boxes[0], level.most_pieces), ""
    unit = rng.choice(list(UNITS))
    return rng.randint(2, level.most_pieces // UNITS[unit]), unit


def draw_task(rng: random.Random, level: Level) -> Task:
    """One errand."""
    goal = str(_chosen(rng, level.goals))
    thing, other = rng.sample(level.things, 2)
    if goal == "order" and level.forbidden_share and rng.random() < level.forbidden_share:
        thing, other = FORBIDDEN, thing if thing != FORBIDDEN else other
    colors = rng.sample(level.colors, level.shades)
    amount, unit = _draw_amount(rng, level, goal == "unit" or rng.random() < level.unit_share)
    numbers = rng.sample(range(*level.numbers), level.shades)
    pieces = amount * UNITS.get(unit, 1)
    names = [(thing, color) for color in colors]
    if rng.random() < level.other_share:
        names[-1] = (other, colors[0])
    items = []
    for number, (name, color) in zip(numbers, names, strict=True):
        box, price = rng.randint(*level.boxes), rng.randint(*level.prices)
        boxes = boxes_for(pieces, box)
        scarce = rng.random() < level.scarce_share
        stock = rng.randint(0, boxes - 1) if scarce else boxes + rng.randint(0, 9)
        items.append(Item(number, color, name, price, box, stock))
    limited = goal == "order" and rng.random() < level.limit_share
    second = goal == "order" and (level.both or not limited) and rng.random() < level.else_share
    limit = None
    if limited:
        total = boxes_for(pieces, items[0].box) * items[0].price
        limit = max(total - rng.randint(1, 9), 1) if rng.random() < level.dear_share else total + rng.randint(0, 9)
    facts = [] if goal == "unit" else ["color", "amount", *(["limit"] if limited else [])]
    left_open = rng.sample(facts, min(int(_chosen(rng, level.left_open)), len(facts)))
    return Task(goal, thing, tuple(colors[: 1 + second]), amount, unit, limit, tuple(sorted(left_open)),
                tuple(items), rng.getrandbits(32), level.team)


def draw_problem(rng: random.Random, problem_id: str, level: Level = STANDARD) -> Problem:
    """One problem with its errand in `meta["task"]` and its worked turns, as JSON records of steps, in
    `meta["solution"]`; a team's may have a mistake among them, whose index is in `meta["mistakes"]`.

    The tools are the same in every errand, and a small policy knows them by heart: they are no part of the prompt.
    """
    while True:
        task = draw_task(rng, level)
        name, friend = rng.sample(level.names, 2)
        if level.careless_share is not None:
            task = replace(task, people=(name, friend))
        steps, mistakes = _solve(rng, task, level)
        if len(steps) <= level.most_turns:
            return Problem(
                problem_id, RULED if task.people else NAME, prompt_of(task, name, friend, turned=level.turned),
                task.ending()[1],
                {"task": to_meta(task), "solution": [to_record(step) for step in steps],
                 **({"mistakes": mistakes} if mistakes else {})},
            )


def _solve(rng: random.Random, task: Task, level: Level) -> tuple[list[Step], list[int]]:
    """A worked solution and the indices of its mistakes."""
    if level.careless_share is not None:
        return solve(task, [rule for rule in RULES if rng.random() < level.careless_share]), []
    if not level.team:
        return solve(task), []
    if rng.random() < level.slip_share:
        steps, slipped = solve_as_team(task, rng, str(_chosen(rng, SLIPS)))
        if slipped is not None and len(steps) <= level.most_turns:
            return steps, [slipped]
    return solve_as_team(task, rng)[0], []


def make_problems(
    split: str, count: int, seed: int, exclude: Collection[str] = (), levels: Sequence[Level] = (STANDARD,)
) -> list[Problem]:
    """`count` distinct problems of a split, of each level in turn, none with a prompt in `exclude`.

    They are the same for the same arguments.
    """
    rng = random.Random(f"{NAME}/{split}/{seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = draw_problem(rng, f"{split}-{len(problems):06d}", levels[len(problems) % len(levels)])
        if problem.prompt not in exclude:
            problems.setdefault(problem.prompt, problem)
    return list(problems.values())

"""Errands drawn from a seed: distinct, apart, of a length that fits, and shifted as none of their level is."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from prm_core.config import EncoderConfig
from prm_core.domains import DOMAINS
from prm_core.domains.errands.tasks import task_of
from prm_core.models.encoder import Encoder
from prm_core.models.tokenizer import train_tokenizer
from prm_core.platform.steps import parse_steps, texts
from prm_core.types import Problem, Step

WORD = re.compile("[A-Za-z]+")
DOMAIN = DOMAINS["errands"]
MAKE, SHIFTED = DOMAIN.levels["standard"], DOMAIN.shifted["standard"]


def solution(problem: Problem) -> tuple[Step, ...]:
    return parse_steps(problem.meta["solution"], problem.id)


def test_problems_are_distinct_named_by_split_and_leave_out_what_they_are_told_to():
    first = MAKE("train", 50, 3, ())
    taken = {problem.prompt for problem in first[::2]}
    second = MAKE("train", 50, 3, taken)

    assert first == MAKE("train", 50, 3, ())
    assert first != MAKE("train", 50, 4, ())
    assert [problem.id for problem in first] == [f"train-{n:06d}" for n in range(50)]
    assert len({problem.prompt for problem in first}) == 50
    assert not taken & {problem.prompt for problem in second}
    assert json.loads(json.dumps(first[0].meta)) == first[0].meta


def test_there_are_problems_of_every_kind():
    tasks = [task_of(problem) for problem in MAKE("train", 400, 0, ())]
    kinds = Counter((task.goal, task.open, task.limit is not None, len(task.colors), task.ending()[1] == "not possible")
                    for task in tasks)

    assert {kind[0] for kind in kinds} == {"order", "price", "unit"}
    assert {kind[1] for kind in kinds} == {(), ("color",), ("amount",), ("limit",)}
    assert {kind[2:4] for kind in kinds} == {(False, 1), (False, 2), (True, 1)}
    assert 0.1 < sum(count for kind, count in kinds.items() if kind[4]) / 400 < 0.4


def test_worked_solutions_call_every_tool_and_again_where_one_fails():
    solutions = [solution(problem) for problem in MAKE("train", 400, 0, ())]
    used = Counter(call.name for steps in solutions for step in steps for call in step.calls)
    failed = Counter(call.result.split()[0] for steps in solutions for step in steps for call in step.calls
                     if call.failed)

    assert set(used) == {"ask", "search", "look", "convert", "pack", "multiply", "order"}
    assert failed["busy"] > 20
    assert failed["only"] > 20
    assert {len(steps) for steps in solutions} == {2, 5, 6, 7, 8, 9}


def test_shifted_problems_put_known_words_together_as_no_other():
    known = {word for problem in MAKE("train", 1000, 0, ()) for word in WORD.findall(problem.prompt)}
    problems = SHIFTED("shifted", 60, 0, ())
    tasks = [task_of(problem) for problem in problems]

    assert not {word for problem in problems for word in WORD.findall(problem.prompt)} - known
    assert all(len(task.open) == 2 for task in tasks[::3])
    assert all(task.limit is not None and len(task.colors) == 2 for task in tasks[1::3])
    told = [problem.prompt.split(" ", 1)[1] for problem in problems[2::3]]
    assert all(text.startswith(("for", "pay")) or "are how many" in text for text in told)


@pytest.mark.parametrize(("level", "shifted", "longest"), [
    ("standard", False, 220), ("standard", True, 256), ("team", False, 256), ("team", True, 256)])
def test_worked_solutions_fit_the_context_of_a_small_model(level, shifted, longest):
    problems = DOMAIN.levels[level]("warmup", 800, 0, ())
    make = (DOMAIN.shifted if shifted else DOMAIN.levels)[level]
    encoder = Encoder(train_tokenizer(text for problem in problems for text in (
        problem.prompt, *(text for step in solution(problem) for text in texts(step)))), EncoderConfig(max_length=512))
    made = make("test", 200, 0, ())
    encoded = [encoder.encode(problem.prompt, solution(problem), end=True) for problem in made]

    assert max(len(chain.ids) for chain in encoded) <= longest
    assert len(encoder.tokenizer) < 500
    # What was heard is not the policy's.
    assert all(0.5 < sum(chain.scored) / (len(chain.ids) - chain.prompt_length) < 0.95 for chain in encoded)
    assert encoder.decode(encoded[0].ids) == (made[0].prompt, solution(made[0]))

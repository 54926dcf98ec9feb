"""Cases with gold, and a judge whose verdicts are given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prm_core.evaluation.judges.base import Case, Judge, Judgement
from prm_core.types import Call, Step

TOOLS = json.dumps([{"type": "function", "function": {"name": "look", "parameters": {
    "type": "object", "properties": {"item": {"type": "string"}, "boxes": {"type": "integer"}}, "required": ["item"],
    "additionalProperties": False}}}])


def look(result: str | None = "4 coins", failed: bool = False, **arguments: Any) -> Step:
    """A turn that looks."""
    return Step("", calls=(Call("look", json.dumps(arguments or {"item": "pens"}), result, failed),))


def case(steps: Sequence[Step], gold: Sequence[bool | None] | None = None, *, tools: str = TOOLS,
         prompt: str = "How much are 3 pens?", problem: str = "p", id: str = "c") -> Case:
    """A case; without gold every step is right."""
    return Case(id, problem, prompt, prompt, tools, tuple(steps), tuple(gold or (True,) * len(steps)))


class GivenJudge(Judge):
    """Says of each case, by id, what is given for each repeat: scores, or verdicts where it decides."""

    about, version = "given", "1"

    def __init__(self, said: Mapping[str, Sequence[Sequence[Any]]], decides: bool = False,
                 tokens: tuple[int, int] = (0, 0), prices: tuple[float, float] = (0.0, 0.0)) -> None:
        self.said, self.tokens, self.prices = said, tokens, prices
        self.decides = decides

    def judge(self, case: Case, seed: int) -> Judgement:
        row = tuple(self.said[case.id][seed % len(self.said[case.id])])
        if self.decides:
            return Judgement(tuple(None if one is None else float(one) for one in row), row, ("because",) * len(row),
                             *self.tokens)
        return Judgement(row, (), (), *self.tokens)

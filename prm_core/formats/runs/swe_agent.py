"""Trajectory files of SWE-agent and of mini-swe-agent: runs of one agent in a shell.

Neither has a place for labels or scores; ours stand in the free object that each step has, under `prm`.

Source: `mini-swe-agent` 2.4.6, agents/default.py; SWE-agent's documented .traj files.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import (
    Format,
    LabelledChain,
    RowFormat,
    as_rating_or_label,
    get,
    get_list,
    rating_or_label,
    register,
    score_in,
    shown,
)
from prm_core.formats.messages import AGENT, USERS, WORLD, Turns, check, content, conversation, named
from prm_core.platform.records import Row
from prm_core.types import Call, Step

OURS = "prm"
# What ends a mini-swe-agent run is no message to anybody.
EXIT = "exit"


def _ours(holder: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    free = holder.get(field)
    found = free.get(OURS) if isinstance(free, dict) else None
    return found if isinstance(found, dict) else {}


def _judged(holders: Sequence[Mapping[str, Any]], field: str, neutral: float, where: str) -> dict[str, Any]:
    """Labels, scores and scorer that the steps' free objects hold."""
    ours = [_ours(holder, field) for holder in holders]
    scores = tuple(score_in(one.get("score")) for one in ours)
    scored = any(score is not None for score in scores)
    return {"labels": tuple(rating_or_label(one.get("label"), neutral, f"{where}: the label of step {index}")
                            for index, one in enumerate(ours)),
            "scores": scores if scored else (),
            "scorer": next((named(one, "version") for one in ours if "version" in one), "") if scored else ""}


def _judge(holders: Sequence[dict[str, Any]], field: str, chain: LabelledChain, neutral: float) -> None:
    """Puts a chain's labels and scores into the steps' free objects, where they differ from what stands there.

    Raises InputError where something else stands in their place.
    """
    before = _judged(holders, field, neutral, "")
    if all(before[name] == getattr(chain, name) for name in before):
        return
    for index, (holder, label) in enumerate(zip(holders, chain.labels, strict=True)):
        free = holder.get(field) or {}
        if not isinstance(free, dict) or not isinstance(free.get(OURS, {}), dict):
            raise InputError(f"step {index}: {field} is {shown(free)}, and labels are to stand in its object {OURS}; "
                             "take it out of the record")
        ours = {} if label is None else {"label": free[OURS]["label"] if label == before["labels"][index]
                                         else as_rating_or_label(label)}
        score = chain.scores[index] if chain.scores else None
        ours |= {} if score is None else {"score": score, "version": chain.scorer}
        free = {name: value for name, value in free.items() if name != OURS} | ({OURS: ours} if ours else {})
        if free or field in holder:
            holder[field] = free


@register
class MiniSweAgent(Format):
    """mini-swe-agent: `messages`, `info`, `trajectory_format`; or a file that is the list of messages alone. What the
    shell gave back is said by the user there, and read as an observation."""

    name = "mini_swe_agent"
    rated = soft = unlabelled = observations = scored = True

    def refusal(self, chain: LabelledChain) -> str | None:
        return None if chain.source == self.name else "holds runs in a shell, which only its own chains are; write chat"

    def parse(self, rows: Iterable[Row], neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        alone: list[dict[str, Any]] = []
        first = ""
        for where, row in rows:
            if "messages" in row or "role" not in row:
                yield self._run(get(row, "messages", list, where), row, where, neutral, noted)
            else:
                first = first or where
                alone.append(row)
        if alone:
            yield self._run(alone, None, first, neutral, noted)

    def _run(self, messages: Sequence[Any], record: Any, where: str, neutral: float, noted: Counter[str]
             ) -> LabelledChain:
        said: list[Mapping[str, Any]] = []
        answered = False
        for index, message in enumerate(messages):
            role = check(message, f"{where}: message {index}")["role"]
            answered = answered or role == AGENT
            free = message.get("extra")
            interrupted = isinstance(free, dict) and free.get("interrupt_type")
            if role == EXIT:
                noted["messages that end a run left out"] += 1
                # Says nothing, and keeps the numbers of those behind it.
                said.append({"role": USERS[0], "content": ""})
            else:
                from_shell = role in USERS and answered and not interrupted
                said.append({**message, "role": WORLD[0]} if from_shell else message)
        prompt, steps = conversation(said, where, noted).finish()
        if not steps:
            raise InputError(f"{where}: there is no assistant message, so there is no step to judge")
        holders = [messages[int(step.ref)] for step in steps]
        return LabelledChain(prompt, steps, source=self.name, meta={
            "record": record, "messages": messages, "neutral": neutral}, **_judged(holders, "extra", neutral, where))

    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        for chain in chains:
            messages = copy.deepcopy(chain.meta["messages"])
            _judge([messages[int(step.ref)] for step in chain.steps], "extra", chain, chain.meta["neutral"])
            if chain.meta["record"] is None:
                yield from messages
            else:
                yield {**chain.meta["record"], "messages": messages}


@register
class SweAgent(RowFormat):
    """SWE-agent: `trajectory`, whose items are steps ({response, thought, action, observation, ...}), `history`, which
    begins with what the agent was asked, and `info`."""

    name = "swe_agent"
    rated = soft = unlabelled = observations = scored = True

    def refusal(self, chain: LabelledChain) -> str | None:
        return None if chain.source == self.name else "holds runs in a shell, which only its own chains are; write chat"

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        turns = Turns(noted)
        for index, message in enumerate(get_list(row, "history", where)):
            at = f"{where}: history {index}"
            if check(message, at).get("is_demo"):
                noted["messages that demonstrate another run left out"] += 1
                continue
            if message["role"] == AGENT:
                break
            turns.hear("user", content(message, at, noted))
        items = get(row, "trajectory", list, where)
        for index, item in enumerate(items):
            turns.say(_step(item, index, f"{where}: trajectory {index}"))
        prompt, steps = turns.finish()
        if not steps:
            noted["runs without an agent's step left out"] += 1
            return None
        holders = [items[int(step.ref)] for step in steps]
        return LabelledChain(prompt, steps, source=self.name, meta={"record": row, "neutral": neutral},
                             **_judged(holders, "extra_info", neutral, where))

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        record = copy.deepcopy(chain.meta["record"])
        _judge([record["trajectory"][int(step.ref)] for step in chain.steps], "extra_info", chain,
               chain.meta["neutral"])
        return record


def _step(item: Any, index: int, where: str) -> Step:
    """A step: what the model wrote, which holds its action; an action that came beside it is a call."""
    if not isinstance(item, dict):
        raise InputError(f"{where} is {shown(item)}, expected an object with response, action and observation")
    texts = {name: get({name: None, **item}, name, (str, type(None)), where) or ""
             for name in ("response", "thought", "action", "observation")}
    text = texts["response"] or texts["thought"]
    if texts["action"].strip() and texts["action"].strip() not in text:
        return Step(text, calls=(Call("action", texts["action"], texts["observation"]),), ref=str(index))
    return Step(text, texts["observation"], ref=str(index))

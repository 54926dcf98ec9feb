"""Trajectories of tool-using agents as chat messages: anybody's, AgentProcessBench's, which rates the agent's messages,
and tau-bench's, which nobody rated."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import (
    LabelledChain,
    RowFormat,
    as_rating_or_label,
    get,
    label_of,
    rating_of,
    rating_or_label,
    register,
    rest,
    score_in,
    shown,
)
from prm_core.formats.messages import AGENT, conversation, named, to_messages, tools_text

LABELS, SCORES, SCORER = "step_labels", "step_scores", "scored_by"
# The fields of a record that a chain has a place for, beside those that say what was done.
OWN = (LABELS, SCORES, SCORER)


def _chain(messages: Sequence[Any], row: Mapping[str, Any], read_label: Callable[[Any, float, str], float | None],
           where: str, neutral: float, noted: Counter[str], **fields: Any) -> LabelledChain:
    """What precedes the agent's first message is the prompt; each of its messages is a step.

    Args:
        messages: of the trajectory.
        row: whose `step_labels` and `step_scores` are by message index, null for none.
        fields: of the chain, beside those; its meta gets `labels` as they were given.
    """
    given = get({LABELS: None, **row}, LABELS, (dict, type(None)), where) or {}
    turns = conversation(messages, where, noted)
    agents = {step.ref for step in turns.steps} | {
        str(index) for index, message in enumerate(messages) if message.get("role") == AGENT}
    if not agents:
        raise InputError(f"{where}: there is no assistant message, so there is no step to judge")
    # As a column of Parquet, the labels have every index that any row has.
    rated = {key for key, rating in given.items() if rating is not None}
    if foreign := rated - agents:
        raise InputError(f"{where}: {LABELS} names message {shown(min(foreign))}, which begins no assistant's turn; "
                         f"those are {', '.join(sorted(agents, key=int))}")
    prompt, steps = turns.finish()
    if not steps:
        raise InputError(f"{where}: no assistant message has text or a tool call; remove the record")
    if silent := len(rated - {step.ref for step in steps}):
        noted["labels of messages without text or tool call left out"] += silent
    labels = tuple(read_label(given.get(step.ref), neutral, f"{where}: {LABELS} {step.ref}") for step in steps)
    return LabelledChain(prompt, steps, labels, **scores_of(row, [step.ref for step in steps]),
                         **fields | {"meta": fields["meta"] | {"labels": given}})


def scores_of(row: Mapping[str, Any], refs: Sequence[str]) -> dict[str, Any]:
    """A chain's `scores` and `scorer`, as a record has them by the index of each step's message."""
    given = row.get(SCORES) if isinstance(row.get(SCORES), dict) else {}
    scores = tuple(score_in(given.get(ref)) for ref in refs)
    return {"scores": scores, "scorer": named(row, SCORER)} if any(score is not None for score in scores) else {}


def score_fields(chain: LabelledChain, refs: Sequence[str]) -> dict[str, Any]:
    """What `scores_of` reads as the scores of a chain; nothing without any."""
    if not any(score is not None for score in chain.scores):
        return {}
    return {SCORES: {ref: score for ref, score in zip(refs, chain.scores, strict=True) if score is not None}} | (
        {SCORER: chain.scorer} if chain.scorer else {})


def _refs(chain: LabelledChain, record: Mapping[str, Any], own: bool) -> list[str]:
    """The index of each step's message: as it was read, or in a record that was made of the steps."""
    if own:
        return [step.ref for step in chain.steps]
    return [str(index) for index, message in enumerate(record["messages"]) if message["role"] == AGENT]


@register
class Chat(RowFormat):
    """`messages`, OpenAI chat messages or items of the Responses API, and perhaps `tools`, `id`, `step_labels`
    ({"message index": a rating -1, 0 or 1, or a probability with its point}), `step_scores` and `scored_by`. The index
    is that of the message or item that begins a turn."""

    name = "chat"
    rated = soft = unlabelled = observations = scored = True

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        return _chain(get(row, "messages", list, where), row, rating_or_label, where, neutral, noted, source=self.name,
                      tools=tools_text(row.get("tools"), where), id=named(row, "id"),
                      meta={"rest": rest(row, *OWN), "had_labels": LABELS in row, "neutral": neutral})

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        own = self.own(chain)
        record = own["rest"] if own else (
            ({"id": chain.id} if chain.id else {}) | {"messages": to_messages(chain.prompt, chain.steps)}
            | ({"tools": _functions(chain.tools)} if chain.tools else {}))
        labels, refs = dict(own.get("labels", {})), _refs(chain, record, bool(own))
        for ref, label in zip(refs, chain.labels, strict=True):
            before = labels.get(ref)
            if before is not None and rating_or_label(before, own["neutral"], "") == label:
                continue
            labels.pop(ref, None)
            if label is not None:
                labels[ref] = as_rating_or_label(label)
        has_labels = bool(labels) or own.get("had_labels", False)
        return record | ({LABELS: labels} if has_labels else {}) | score_fields(chain, refs)


def _functions(tools: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": tool} for tool in json.loads(tools or "[]")]


@register
class TauBench(RowFormat):
    """tau-bench (Yao et al. 2024): `task_id`, `reward`, `info`, `traj` (messages), `trial`; nobody rated the messages.

    The outcome is right for a reward of 1, wrong for one of 0.
    """

    name = "tau_bench"
    unlabelled = observations = True

    def refusal(self, chain: LabelledChain) -> str | None:
        if chain.source != self.name or any(label is not None for label in chain.labels):
            return ("has no place for labels, and needs the task, which only its own chains have; write "
                    "agentprocessbench")
        return None

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        reward = get({"reward": None, **row}, "reward", (int, float, type(None)), where)
        return _chain(get(row, "traj", list, where), {}, label_of, where, neutral, noted,
                      outcome=None if reward not in (0, 1) else reward == 1, source=self.name, meta={"rest": row})

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        return chain.meta["rest"]


@register
class AgentProcessBench(RowFormat):
    """AgentProcessBench (Fan et al. 2026): `messages`, `tools`, `step_labels` ({"message index": -1, 0 or 1}).

    A record without `step_labels`, such as one of tau-bench, is one that nobody rated. A model's scores stand beside
    them as `step_scores`.
    """

    name = "agentprocessbench"
    rated = unlabelled = observations = scored = True

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        if "messages" not in row and "traj" in row:
            return TauBench().parse_row(where, row, neutral, noted)
        final = row.get("final_label")
        return _chain(get(row, "messages", list, where), row, label_of, where, neutral, noted,
                      outcome=None if final not in (-1, 1) else final == 1, source=self.name,
                      tools=tools_text(row.get("tools"), where), id=named(row, "total_index"),
                      meta={"rest": rest(row, *OWN)})

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        own = self.own(chain)
        final = {None: None, True: 1, False: -1}[chain.outcome]
        if chain.source == TauBench.name:
            record = chain.meta["rest"]
            own = chain.meta | {"rest": {**rest(record, "traj"), "question": chain.prompt, "messages": record["traj"],
                                         "tools": [], "final_label": final}}
        record = own["rest"] if own else {
            "question": chain.prompt, "messages": to_messages(chain.prompt, chain.steps),
            "tools": _functions(chain.tools), "final_label": final}
        labels, refs = dict(own.get("labels", {})), _refs(chain, record, bool(own))
        for ref, label in zip(refs, chain.labels, strict=True):
            rating = rating_of(label, labels.pop(ref, None))
            if rating is not None:
                labels[ref] = rating
        return {**record, LABELS: labels, **score_fields(chain, refs)}

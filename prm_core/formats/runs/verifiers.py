"""Traces of verifiers and prime-rl: a graph of messages, of which each leaf ends a branch; a chain for each branch.

Branches share what precedes them, and so do chains; the labels of shared steps are in the first of them only. A step is
a message that a model sampled, and its `ref` the index of its node. Labels and scores of ours stand in the trace's
`info`; from them each sampled token gets its credit, `advantages`: 2 p - 1 for a step that is right with probability p,
so that a step neither likely right nor likely wrong teaches nothing, and a shared step the same in each branch.

Source: `verifiers` 0.4.0, v1/trace.py and v1/graph.py.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import (
    Format,
    LabelledChain,
    as_rating_or_label,
    get,
    rating_or_label,
    register,
    score_in,
    shown,
)
from prm_core.formats.messages import conversation, named, tools_text
from prm_core.platform.records import Row
from prm_core.turns import written
from prm_core.types import Message, Step

OURS = "prm"


def _nodes(trace: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """The nodes, each behind its parent. Raises InputError where one is not, as in a circle."""
    nodes = get(trace, "nodes", list, where)
    for index, node in enumerate(nodes):
        if not isinstance(node, dict) or not isinstance(node.get("message"), dict):
            raise InputError(f"{where}: node {index} is {shown(node)}, expected an object with a message")
        parent = node.get("parent")
        if parent is not None and (type(parent) is not int or not 0 <= parent < index):
            raise InputError(f"{where}: node {index} has the parent {shown(parent)}, expected the index of a node "
                             "before it, or null")
    return nodes


def _branches(nodes: Sequence[Mapping[str, Any]]) -> Iterator[list[int]]:
    """The paths from a root to each leaf."""
    inner = {node.get("parent") for node in nodes}
    for leaf in range(len(nodes)):
        if leaf not in inner:
            path: list[int] = []
            at: int | None = leaf
            while at is not None:
                path.append(at)
                at = nodes[at].get("parent")
            yield path[::-1]


def _turns(nodes: Sequence[Mapping[str, Any]], path: Sequence[int], where: str, noted: Counter[str]
           ) -> tuple[str, tuple[Step, ...]]:
    """Prompt and steps of a branch. What the harness put into the agent's mouth is context."""
    prompt, steps = conversation([nodes[index]["message"] for index in path], where, noted).finish()
    before, kept = [prompt] if prompt else [], list[Step]()
    for step in steps:
        index = path[int(step.ref)]
        if nodes[index].get("sampled") is True:
            kept.append(replace(step, ref=str(index)))
            continue
        noted["agent's messages that no model sampled, read as context"] += 1
        said = [Message("agent", text) for text in (
            written(step), *(call.result for call in step.calls if call.result), step.observation) if text]
        if kept:
            kept[-1] = replace(kept[-1], context=(*kept[-1].context, *said, *step.context))
        else:
            before += [message.text for message in (*said, *step.context)]
    return "\n\n".join(before), tuple(kept)


def _ours(trace: Mapping[str, Any]) -> Mapping[str, Any]:
    info = trace.get("info")
    found = info.get(OURS) if isinstance(info, dict) else None
    return found if isinstance(found, dict) else {}


def _by_node(trace: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = _ours(trace).get(name)
    return found if isinstance(found, dict) else {}


@register
class Verifiers(Format):
    """A trace a record: `nodes` ({parent, message, sampled, ...}), `id`, `info`."""

    name = "verifiers"
    rated = soft = unlabelled = observations = scored = True

    def refusal(self, chain: LabelledChain) -> str | None:
        return None if chain.source == self.name else "holds graphs of tokens, which only its own chains are"

    def parse(self, rows: Iterable[Row], neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        for where, trace in rows:
            nodes = _nodes(trace, where)
            labels, scores = _by_node(trace, "labels"), _by_node(trace, "scores")
            paths = list(_branches(nodes))
            # The branch that a step was first met in.
            seen: dict[str, str] = {}
            for path in paths:
                prompt, steps = _turns(nodes, path, f"{where}: branch to node {path[-1]}", noted)
                if not steps:
                    noted["branches without a sampled message left out"] += 1
                    continue
                own = [None if step.ref in seen else labels.get(step.ref) for step in steps]
                id = named(trace, "id") if len(paths) == 1 else f"{named(trace, 'id')}/{path[-1]}"
                shared = [f"{seen[step.ref]}/{step.ref}" for step in steps if step.ref in seen]
                seen = {step.ref: id for step in steps} | seen
                given = tuple(score_in(scores.get(step.ref)) for step in steps)
                scored = any(score is not None for score in given)
                yield LabelledChain(
                    prompt, steps, tuple(rating_or_label(label, neutral, f"{where}: the label of node {step.ref}")
                                         for step, label in zip(steps, own, strict=True)),
                    source=self.name, meta={"document": where, "record": trace, "neutral": neutral},
                    tools=tools_text(nodes[path[0]].get("tools") or trace.get("tools"), where),
                    id=id, scores=given if scored else (), scorer=named(_ours(trace), "version") if scored else "",
                    parent=shared[-1] if shared else "")

    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        for _, group in itertools.groupby(chains, lambda chain: chain.meta["document"]):
            same = list(group)
            yield _again(same[0].meta["record"], same, noted)


def _again(record: Mapping[str, Any], chains: Sequence[LabelledChain], noted: Counter[str]) -> dict[str, Any]:
    """The trace that chains were read from, with the labels, the scores and the credit that they have now."""
    neutral = chains[0].meta["neutral"]
    ours, before = _ours(record), _by_node(record, "labels")
    labels, scores = dict(before), dict(_by_node(record, "scores"))
    seen: set[str] = set()
    for chain in chains:
        for step, label, score in zip(chain.steps, chain.labels, chain.scores or (None,) * len(chain.steps),
                                      strict=True):
            if step.ref in seen:
                continue
            seen.add(step.ref)
            if rating_or_label(before.get(step.ref), neutral, "") != label:
                labels[step.ref] = None if label is None else as_rating_or_label(label)
            scores[step.ref] = score
    found = {"labels": {ref: label for ref, label in labels.items() if label is not None},
             "scores": {ref: score for ref, score in scores.items() if score is not None}}
    found |= {"version": chains[0].scorer} if found["scores"] and chains[0].scorer else {}
    found = {name: value for name, value in found.items() if value}
    if found == {name: value for name, value in ours.items() if name in ("labels", "scores", "version") and value}:
        return dict(record)
    trace = copy.deepcopy(dict(record))
    info = trace.get("info") or {}
    if not isinstance(info, dict) or not isinstance(info.get(OURS, {}), dict):
        raise InputError(f"trace {named(record, 'id')}: info is {shown(info)}, and labels are to stand in its object "
                         f"{OURS}; take it out of the record")
    trace["info"] = {**info, OURS: {name: value for name, value in ours.items()
                                    if name not in ("labels", "scores", "version")} | found}
    for ref in seen:
        value = score_in(found.get("scores", {}).get(ref))
        value = rating_or_label(labels.get(ref), neutral, "") if value is None else value
        mask = trace["nodes"][int(ref)].get("mask")
        sampled = mask.count(True) if isinstance(mask, list) else 0
        if value is not None and not sampled:
            noted["sampled messages without tokens, whose credit has no place"] += 1
        elif value is not None:
            trace["nodes"][int(ref)]["advantages"] = [2 * value - 1] * sampled
    return trace

"""MATH-APS (OpenR): Monte-Carlo values of solution prefixes, a tree of them for each question."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import Format, LabelledChain, get, register, rest, shown
from prm_core.formats.trees import Node, leaf_paths, trees
from prm_core.platform.records import Row
from prm_core.types import Step


def _value(item: dict[str, Any], where: str) -> float:
    value = item.get("mc_value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{where}: mc_value is {shown(value)}, expected a number from 0 to 1")
    return float(value)


def _nodes(question: str, items: list[Any], where: str, dropped: Counter[str]) -> tuple[list[Node], list[Any]]:
    """Nodes in the order of the record, and the entries of the bare question.

    A step is what a prefix adds to the longest other prefix it goes on from. An entry that adds no text, such as a
    prefix valued twice, joins the one it repeats: [index, text added, the record's entry].
    """
    prefixes = []
    for index, item in enumerate(items):
        at = f"{where}: reasoning_steps {index}"
        if not isinstance(item, dict):
            raise InputError(f"{at} is {shown(item)}, expected an object with solution_prefix and mc_value")
        prefix = get(item, "solution_prefix", str, at)
        if not prefix.startswith(question):
            raise InputError(f"{at}: solution_prefix does not begin with the question; it is the question and the "
                             "steps so far")
        prefixes.append((prefix[len(question):], index, _value(item, at)))
    same: dict[int | None, list[Any]] = {None: []}
    # Sorted, each prefix comes after those it goes on from: the open ones are a stack.
    found: dict[int, tuple[str, float, int | None, dict[str, Any]]] = {}
    stack: list[tuple[str, int | None]] = [("", None)]
    for prefix, index, value in sorted(prefixes):
        while not prefix.startswith(stack[-1][0]):
            stack.pop()
        text = prefix[len(stack[-1][0]):]
        if not text.strip():
            same[stack[-1][1]].append([index, text, rest(items[index], "solution_prefix")])
            if stack[-1][1] is not None:
                dropped["values of a prefix that has one"] += 1
        else:
            place = {"at": index, "lead": text[:len(text) - len(text.lstrip())], "tail": text[len(text.rstrip()):],
                     "same": same.setdefault(index, []), "rest": rest(items[index], "solution_prefix", "mc_value")}
            found[index] = (text.strip(), value, stack[-1][1], place)
            stack.append((prefix, index))
    order = {index: position for position, index in enumerate(sorted(found))}
    return [Node(text, value, None if parent is None else order[parent], place)
            for text, value, parent, place in (found[index] for index in sorted(found))], same[None]


@register
class MathAps(Format):
    """MATH-APS (OpenR): `question`, `final_answer`, `reasoning_steps` of `solution_prefix` and `mc_value`.

    Labels are the Monte-Carlo values. That of the bare question is in meta["root"].
    """

    name = "math_aps"
    soft = True

    def refusal(self, chain: LabelledChain) -> str | None:
        return "needs the reference answer (`final_answer`), which this chain lacks" if chain.answer is None else None

    def parse(self, rows: Iterable[Row], neutral: float, dropped: Counter[str]) -> Iterator[LabelledChain]:
        for number, (where, row) in enumerate(rows):
            question, answer = get(row, "question", str, where), get(row, "final_answer", str, where)
            nodes, root = _nodes(question, get(row, "reasoning_steps", list, where), where, dropped)
            if not nodes:
                dropped["questions without a step"] += 1
            other = rest(row, "question", "final_answer", "reasoning_steps")
            for path in leaf_paths(nodes):
                meta = {"tree": number, "rest": other, "root": root, "nodes": [node.place for node in path]}
                yield LabelledChain(question, tuple(Step(node.text) for node in path),
                                    tuple(node.label for node in path), answer, None, self.name, meta)

    def compose(self, chains: Iterable[LabelledChain], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
        for tree in trees(chains, self.name):
            first = tree[0]
            own = self.own(first)
            items: dict[int, dict[str, Any]] = {}
            for at, text, entry in own.get("root", ()):
                items[at] = {**entry, "solution_prefix": first.prompt + text}
            for chain in tree:
                places = self.own(chain).get("nodes") or [
                    {"at": index, "lead": "\n\n", "tail": "", "same": (), "rest": {}}
                    for index in range(len(chain.steps))]
                texts = [place["lead"] + step.text + place["tail"]
                         for place, step in zip(places, chain.steps, strict=True)]
                prefixes = itertools.accumulate(texts, initial=chain.prompt)
                next(prefixes)
                for place, prefix, label in zip(places, prefixes, chain.labels, strict=True):
                    items[place["at"]] = {**place["rest"], "solution_prefix": prefix, "mc_value": label}
                    for at, text, entry in place["same"]:
                        items[at] = {**entry, "solution_prefix": prefix + text}
            yield {**own.get("rest", {}), "question": first.prompt, "final_answer": first.answer,
                   "reasoning_steps": [items[at] for at in sorted(items)]}

"""MATH-APS (OpenR): Monte-Carlo values of solution prefixes, a tree of them for each question."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import Format, LabelledChain, get, label_between, register, rest, shown
from prm_core.formats.trees import Node, leaf_paths, trees
from prm_core.platform.records import Row
from prm_core.types import Step


def _goes_on(before: str, added: str) -> bool:
    """Whether text added to a prefix is a step of its own, not the rest of another candidate that begins like it."""
    return before.endswith("\n") or added.lstrip(" \t\r").startswith("\n")


def _place(item: dict[str, Any], at: Any, text: str, same: list[Any], *used: str) -> dict[str, Any]:
    return {"at": at, "lead": text[:len(text) - len(text.lstrip())], "tail": text[len(text.rstrip()):], "same": same,
            "rest": rest(item, "mc_value", *used)}


def _prefix_nodes(question: str, items: list[Any], where: str, noted: Counter[str]) -> tuple[list[Node], list[Any]]:
    """Nodes in the order of the record, and the entries of the bare question.

    A step is what a prefix adds to the longest other prefix that it goes on from after a line break. An entry that adds
    no text, such as a prefix valued twice, joins the one it repeats: [index, text added, the record's entry].
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
        prefixes.append((prefix[len(question):], index, label_between(item.get("mc_value"), f"{at}: mc_value")))
    same: dict[int | None, list[Any]] = {None: []}
    # Sorted, each prefix comes after those it begins with: they are a stack.
    found: dict[int, tuple[str, float, int | None, dict[str, Any]]] = {}
    stack: list[tuple[str, int | None]] = [("", None)]
    for prefix, index, value in sorted(prefixes):
        while not prefix.startswith(stack[-1][0]):
            stack.pop()
        before, parent = stack[-1]
        text = prefix[len(before):]
        if not text.strip():
            same[parent].append([index, text, rest(items[index], "solution_prefix")])
            if parent is not None:
                noted["second values of a prefix left out"] += 1
            continue
        # What begins alike without going on is a sibling; its own parent is further down.
        before, parent = next(entry for entry in reversed(stack)
                              if entry[1] is None or _goes_on(entry[0], prefix[len(entry[0]):]))
        text = prefix[len(before):]
        place = _place(items[index], index, text, same.setdefault(index, []), "solution_prefix")
        found[index] = (text.strip(), value, parent, place)
        stack.append((prefix, index))
    order = {index: position for position, index in enumerate(sorted(found))}
    return [Node(text, value, None if parent is None else order[parent], place)
            for text, value, parent, place in (found[index] for index in sorted(found))], same[None]


def _tree_nodes(question: str, root: dict[str, Any], where: str, noted: Counter[str]
                ) -> tuple[list[Node], dict[str, Any]]:
    """Nodes of a tree of `text`, `mc_value` and `children`, each before its children, and the root without them."""
    if get(root, "text", str, f"{where}: reasoning_steps").strip() != question.strip():
        raise InputError(f"{where}: the text of reasoning_steps is {shown(root['text'])}, expected the question; steps "
                         "are its children")
    nodes: list[Node] = []
    left: list[tuple[dict[str, Any], list[int], int | None]] = [(root, [], None)]
    while left:
        item, path, parent = left.pop()
        at = ": ".join([where, "reasoning_steps", *(f"child {index}" for index in path)])
        if path:
            text, value = get(item, "text", str, at), label_between(item.get("mc_value"), f"{at}: mc_value")
            if text.strip():
                nodes.append(Node(text.strip(), value, parent, _place(item, path, text, [], "text", "children")))
                parent = len(nodes) - 1
            else:
                noted["steps without text left out, what follows them kept"] += 1
        children = item.get("children") or []
        if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
            raise InputError(f"{at}: field children is {shown(children)}, expected a list of objects with text, "
                             "mc_value and children")
        left += [(child, [*path, index], parent) for index, child in reversed(list(enumerate(children)))]
    return nodes, rest(root, "children")


@register
class MathAps(Format):
    """MATH-APS (OpenR): `question`, `final_answer`, and `reasoning_steps` of `solution_prefix` and `mc_value`.

    `reasoning_steps` may also be the tree that OmegaPRM v2 saves: `text`, `mc_value` and `children` from the question
    on. Labels are the Monte-Carlo values. That of the bare question is in meta["root"].
    """

    name = "math_aps"
    soft = True

    def refusal(self, chain: LabelledChain) -> str | None:
        return "needs the reference answer (`final_answer`), which this chain lacks" if chain.answer is None else None

    def parse(self, rows: Iterable[Row], neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        for where, row in rows:
            question, answer = get(row, "question", str, where), get(row, "final_answer", str, where)
            given = get(row, "reasoning_steps", (list, dict), where)
            nodes, root = (_prefix_nodes if isinstance(given, list) else _tree_nodes)(question, given, where, noted)
            if not nodes:
                noted["questions without a step left out"] += 1
            other = rest(row, "question", "final_answer", "reasoning_steps")
            for path in leaf_paths(nodes):
                meta = {"tree": where, "rest": other, "root": root, "nodes": [node.place for node in path]}
                yield LabelledChain(question, tuple(Step(node.text) for node in path),
                                    tuple(node.label for node in path), answer, None, self.name, meta)

    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        for tree in trees(chains, self.name):
            first = tree[0]
            own = self.own(first)
            root = own.get("root", ())
            steps = self._tree(root, tree) if isinstance(root, dict) else self._prefixes(root, tree)
            yield {**own.get("rest", {}), "question": first.prompt, "final_answer": first.answer,
                   "reasoning_steps": steps}

    def _prefixes(self, root: Iterable[Any], tree: list[LabelledChain]) -> list[dict[str, Any]]:
        prompt = tree[0].prompt
        items: dict[int, dict[str, Any]] = {at: {**entry, "solution_prefix": prompt + text} for at, text, entry in root}
        for chain in tree:
            places = self.own(chain).get("nodes") or [
                {"at": index, "lead": "\n\n", "tail": "", "same": (), "rest": {}} for index in range(len(chain.steps))]
            texts = [place["lead"] + step.text + place["tail"] for place, step in zip(places, chain.steps, strict=True)]
            prefixes = itertools.accumulate(texts, initial=prompt)
            next(prefixes)
            for place, prefix, label in zip(places, prefixes, chain.labels, strict=True):
                items[place["at"]] = {**place["rest"], "solution_prefix": prefix, "mc_value": label}
                for at, text, entry in place["same"]:
                    items[at] = {**entry, "solution_prefix": prefix + text}
        return [items[at] for at in sorted(items)]

    @staticmethod
    def _tree(root: dict[str, Any], tree: list[LabelledChain]) -> dict[str, Any]:
        made: dict[str, dict[str, Any]] = {}
        top: dict[str, Any] = {**root, "children": []}
        for chain in tree:
            above = top
            for place, step, label in zip(chain.meta["nodes"], chain.steps, chain.labels, strict=True):
                key = repr(place["at"])
                if key not in made:
                    made[key] = {**place["rest"], "text": place["lead"] + step.text + place["tail"], "mc_value": label,
                                 "children": []}
                    above["children"].append(made[key])
                above = made[key]
        return top

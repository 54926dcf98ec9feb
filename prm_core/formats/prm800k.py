"""PRM800K (Lightman et al. 2023): as published, one labelled solution a line, and flat, one rated next step a row.

A step that people wrote themselves has no rating; they wrote one where every candidate was wrong, so it is right.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.formats.base import Format, LabelledChain, get, label_of, rating_of, register, rest, shown
from prm_core.formats.trees import Node, leaf_paths, trees
from prm_core.platform.records import Row
from prm_core.types import Step

if TYPE_CHECKING:
    import pyarrow as pa

HUMAN = "human"
_FLAGS = ("is_human_response", "is_solution", "is_preferred_response")


def _rating(place: dict[str, Any], label: float | None, human: bool) -> int | float | None:
    """The rating of a step on its way back: people's own steps have none."""
    return None if human and place["rating"] is None and label == 1 else rating_of(label, place["rating"])


def _chain(path: list[Node], **fields: Any) -> LabelledChain:
    return LabelledChain(steps=tuple(Step(node.text) for node in path), labels=tuple(node.label for node in path),
                         **fields)


@register
class Prm800k(Format):
    """PRM800K as published: `question` and `label.steps`, each with rated `completions` and the one gone on with.

    One record is read as several chains: the one people went on with, and for each other candidate the chain that ends
    with it.
    """

    name = "prm800k"
    rated = unlabelled = True

    def parse(self, rows: Iterable[Row], neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        for where, row in rows:
            question, label = get(row, "question", dict, where), get(row, "label", dict, where)
            prompt = get(question, "problem", str, f"{where}: question")
            answer = get({"ground_truth_answer": None, **question}, "ground_truth_answer", (str, type(None)),
                         f"{where}: question")
            nodes, end = self._nodes(get(label, "steps", list, f"{where}: label"), neutral, where, noted)
            if not nodes:
                noted["solutions without a step left out"] += 1
            other = {**row, "label": rest(label, "steps")}
            for path in leaf_paths(nodes):
                solved = label.get("finish_reason") == "solution" and path[-1] is end
                meta = {"tree": where, "rest": other, "nodes": [node.place for node in path]}
                yield _chain(path, prompt=prompt, answer=answer, outcome=True if solved else None, source=self.name,
                             meta=meta)

    def _nodes(self, steps: list[Any], neutral: float, where: str, noted: Counter[str]
               ) -> tuple[list[Node], Node | None]:
        """Every candidate of every step, and the last one people went on with."""
        nodes: list[Node] = []
        on: int | None = None
        for index, step in enumerate(steps):
            at = f"{where}: label.steps {index}"
            if not isinstance(step, dict):
                raise InputError(f"{at} is {shown(step)}, expected an object with completions")
            human, chosen = step.get("human_completion"), step.get("chosen_completion")
            candidates = list(enumerate(step.get("completions") or ()))
            if human is not None:
                candidates.append((HUMAN, human))
            if chosen is None and human is not None:
                chosen = HUMAN
            if index and on is None:
                noted["candidates after a step that nothing was chosen for left out"] += len(candidates)
                continue
            before, on = on, None
            for key, candidate in candidates:
                spot = f"{at}: completion {key}"
                text = get(candidate, "text", (str, type(None)), spot) if isinstance(candidate, dict) else None
                if text is None or not text.strip():
                    noted["candidates without text left out"] += 1
                    continue
                rating = candidate.get("rating")
                label = 1.0 if key == HUMAN and rating is None else label_of(rating, neutral, f"{spot}: rating")
                if key == chosen:
                    on = len(nodes)
                nodes.append(Node(text, label, before, {
                    "at": [index, key], "chosen": key == chosen, "rating": rating,
                    "rest": rest(candidate, "text", "rating")}))
        return nodes, None if on is None else nodes[on]

    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        for tree in trees(chains, self.name):
            first = tree[0]
            steps: dict[int, dict[Any, tuple[dict[str, Any], bool]]] = {}
            for chain in tree:
                places = self.own(chain).get("nodes") or [
                    {"at": [index, 0], "chosen": True, "rating": None, "rest": {"flagged": None}}
                    for index in range(len(chain.steps))]
                for place, step, label in zip(places, chain.steps, chain.labels, strict=True):
                    index, key = place["at"]
                    rating = _rating(place, label, key == HUMAN)
                    steps.setdefault(index, {})[key] = ({**place["rest"], "text": step.text, "rating": rating},
                                                        place["chosen"])
            written = [self._step(steps.get(index, {})) for index in range(max(steps) + 1)]
            other = self.own(first).get("rest") or {
                "question": {"problem": first.prompt, "ground_truth_answer": first.answer},
                "label": {"finish_reason": "solution" if first.outcome else
                          "found_error" if 0.0 in first.labels else "give_up"}}
            yield {**other, "question": {**other["question"], "problem": first.prompt},
                   "label": {**other["label"], "steps": written}}

    @staticmethod
    def _step(candidates: dict[Any, tuple[dict[str, Any], bool]]) -> dict[str, Any]:
        human = candidates.pop(HUMAN, (None, False))[0]
        ordered = [candidates[key] for key in sorted(candidates)]
        chosen = next((index for index, (_, chosen) in enumerate(ordered) if chosen), None)
        return {"completions": [candidate for candidate, _ in ordered], "human_completion": human,
                "chosen_completion": chosen}


@register
class Prm800kFlat(Format):
    """PRM800K by rows: `instruction`, `responses` (steps so far), `next_response` and its `rating`, and three flags.

    The rows of one problem, which follow each other, are read as chains that end where no row goes on from them.
    """

    name = "prm800k_flat"
    rated = unlabelled = True

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([
            ("instruction", pa.string()), ("responses", pa.list_(pa.string())), ("next_response", pa.string()),
            ("answer", pa.string()), *((flag, pa.bool_()) for flag in _FLAGS), ("rating", pa.float64())])

    def parse(self, rows: Iterable[Row], neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        blocks = itertools.groupby(rows, lambda item: get(item[1], "instruction", str, item[0]))
        for prompt, block in blocks:
            first = next(block)
            for path in leaf_paths(self._nodes(itertools.chain([first], block), neutral, noted)):
                last = path[-1].place
                solved = bool(last.get("is_solution"))
                meta = {"tree": first[0], "nodes": [node.place for node in path]}
                yield _chain(path, prompt=prompt, answer=last.get("answer") if solved else None,
                             outcome=True if solved else None, source=self.name, meta=meta)

    def _nodes(self, block: Iterable[Row], neutral: float, noted: Counter[str]) -> list[Node]:
        nodes: list[Node] = []
        # The latest row wins: two labelled solutions may begin alike.
        latest: dict[tuple[str, ...], int] = {}
        for index, (where, row) in enumerate(block):
            before, text = row.get("responses"), get(row, "next_response", (str, type(None)), where)
            if not isinstance(before, list) or not all(isinstance(step, str) and step.strip() for step in before):
                raise InputError(f"{where}: field responses is {shown(before)}, expected a list of texts, none blank")
            if text is None or not text.strip():
                noted["rows without a next step left out"] += 1
                continue
            parent = latest.get(tuple(before))
            if parent is None:
                parent = self._unrated(before, nodes, latest)
            rating = row.get("rating")
            human = bool(row.get("is_human_response")) and rating is None
            latest[(*before, text)] = len(nodes)
            nodes.append(Node(text, 1.0 if human else label_of(rating, neutral, f"{where}: field rating"), parent,
                              {"at": index, **rest(row, "instruction", "responses", "next_response")}))
        return nodes

    @staticmethod
    def _unrated(before: list[str], nodes: list[Node], latest: dict[tuple[str, ...], int]) -> int | None:
        """Adds the steps of a prefix that no row rated, and returns the last; None for the empty prefix."""
        parent = None
        for end in range(1, len(before) + 1):
            prefix = tuple(before[:end])
            if prefix not in latest:
                latest[prefix] = len(nodes)
                nodes.append(Node(prefix[-1], None, parent, {"at": None}))
            parent = latest[prefix]
        return parent

    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        for tree in trees(chains, self.name):
            rows: dict[int, dict[str, Any]] = {}
            for chain in tree:
                places = self.own(chain).get("nodes") or self._places(chain)
                texts = [step.text for step in chain.steps]
                for index, (place, label) in enumerate(zip(places, chain.labels, strict=True)):
                    if place["at"] is None:
                        continue
                    rows[place["at"]] = {
                        "instruction": chain.prompt, "responses": texts[:index], "next_response": texts[index],
                        **rest(place, "at"), "rating": _rating(place, label, place["is_human_response"])}
            yield from (rows[at] for at in sorted(rows))

    @staticmethod
    def _places(chain: LabelledChain) -> list[dict[str, Any]]:
        last = len(chain.steps) - 1
        return [{"at": index, "answer": chain.answer if index == last and chain.outcome else None,
                 "is_human_response": False, "is_solution": index == last and bool(chain.outcome),
                 "is_preferred_response": index < last or bool(chain.outcome), "rating": None}
                for index in range(last + 1)]

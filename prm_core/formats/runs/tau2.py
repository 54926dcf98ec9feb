"""tau2-bench: simulated conversations of an agent and a user, and the reviews of them, whose errors are labels by turn.

What the user did with tools of its own the agent never saw: it is left out, and counted. The reviewer is a language
model; of a reviewed run each turn of the agent in which it names no error is right, a minor error is neutral and any
other wrong. A model's scores stand beside the messages, as in `chat`.

Source: sierra-research/tau2-bench at a2c0247, data_model/message.py and data_model/simulation.py.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.agents import OWN, score_fields, scores_of
from prm_core.formats.base import Format, LabelledChain, Labels, get, get_list, label_of, register, rest, shown
from prm_core.formats.messages import AGENT, TOOLS, USERS, check, conversation, named
from prm_core.platform.records import Row
from prm_core.types import Step

MINOR = "minor"


def _messages(run: Mapping[str, Any], where: str, noted: Counter[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """What the agent said and heard, each with the index of its message; one message may hold several results."""
    for index, message in enumerate(get_list(run, "messages", where)):
        at = f"{where}: message {index}"
        for one in get_list(message, "tool_messages", at) if isinstance(message, dict) and message.get(
                "tool_messages") else [message]:
            role = check(one, at)["role"]
            if role in TOOLS and one.get("requestor") == USERS[0]:
                noted["results of the user's own tools left out"] += 1
            elif role in TOOLS:
                yield index, {**one, "tool_call_id": one.get("id"), "content": one.get("content") or ""}
            else:
                if role != AGENT and get_list(one, "tool_calls", at):
                    noted["calls of the user's own tools left out"] += len(one["tool_calls"])
                yield index, one


def _labels(run: Mapping[str, Any], steps: Sequence[Step], neutral: float, where: str, noted: Counter[str]) -> Labels:
    review = get({"review": None, **run}, "review", (dict, type(None)), where)
    if review is None:
        return (None,) * len(steps)
    turns = {message["turn_idx"] if type(message.get("turn_idx")) is int else index: str(index)
             for index, message in enumerate(run["messages"])}
    refs = {step.ref for step in steps}
    ratings: dict[str, int | None] = {}
    right: int | None = 1
    for error in get_list(review, "errors", f"{where}: review"):
        if not isinstance(error, dict) or error.get("source") not in ("agent", "user", "unknown"):
            raise InputError(f"{where}: review: an error is {shown(error)}, expected an object whose source is agent, "
                             "user or unknown")
        turn = error.get("turn_idx")
        ref = turns.get(turn) if type(turn) is int else None
        if error["source"] == "user":
            noted["errors of the user left out"] += 1
        elif ref not in refs:
            # It may be in any of the turns, of which none can be called right then.
            noted["errors that name no turn of the agent's left out"] += 1
            right = None
        elif error["source"] == "unknown":
            ratings.setdefault(str(ref), None)
        else:
            rating = 0 if error.get("severity") == MINOR else -1
            known = ratings.get(str(ref))
            ratings[str(ref)] = rating if known is None else min(known, rating)
    return tuple(label_of(ratings.get(step.ref, right), neutral, where) for step in steps)


@register
class Tau2(Format):
    """tau2-bench's results (`simulations`, `info`), or a simulation a record (`messages`, `task_id`, `review`)."""

    name = "tau2"
    rated = unlabelled = observations = scored = True

    def refusal(self, chain: LabelledChain) -> str | None:
        if chain.source != self.name or chain.labels != chain.meta["labels"]:
            return ("holds simulations, which only its own chains are, and labels as its reviewer gave them; write "
                    "chat or atif")
        return None

    def parse(self, rows: Iterable[Row], neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        for where, row in rows:
            alone = "simulations" not in row
            info = row.get("info") if isinstance(row.get("info"), dict) else {}
            environment = info.get("environment_info")
            policy = named(environment, "policy") if isinstance(environment, dict) and not alone else ""
            runs = [row] if alone else get(row, "simulations", list, where)
            for number, run in enumerate(runs):
                at = where if alone else f"{where}: simulation {number}"
                if not isinstance(run, dict):
                    raise InputError(f"{at} is {shown(run)}, expected an object")
                # Runs of speech may keep ticks in their place.
                if "ticks" not in run:
                    get(run, "messages", list, at)
                said = list(_messages(run, at, noted))
                prompt, steps = conversation([message for _, message in said], at, noted).finish()
                steps = tuple(replace(step, ref=str(said[int(step.ref)][0])) for step in steps)
                if not steps:
                    noted["runs without an agent's message, as of speech, left out"] += 1
                    continue
                labels = _labels(run, steps, neutral, at, noted)
                reward = run["reward_info"].get("reward") if isinstance(run.get("reward_info"), dict) else None
                yield LabelledChain(
                    "\n\n".join(filter(None, (named(run, "policy") or policy, prompt))), steps, labels,
                    outcome=None if reward not in (0, 1) else reward == 1, source=self.name, id=named(run, "id"),
                    meta={"document": where, "record": row, "run": None if alone else number, "labels": labels},
                    **scores_of(run, [step.ref for step in steps]))

    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        for _, group in itertools.groupby(chains, lambda chain: chain.meta["document"]):
            same = list(group)
            record = same[0].meta["record"]
            if same[0].meta["run"] is None:
                yield _scored(record, same[0])
                continue
            runs = list(record["simulations"])
            for chain in same:
                runs[chain.meta["run"]] = _scored(runs[chain.meta["run"]], chain)
            yield {**record, "simulations": runs}


def _scored(run: Mapping[str, Any], chain: LabelledChain) -> dict[str, Any]:
    return rest(run, *OWN[1:]) | score_fields(chain, [step.ref for step in chain.steps])

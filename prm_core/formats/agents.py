"""Trajectories of tool-using agents as chat messages: AgentProcessBench rates the agent's messages, tau-bench none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import LabelledChain, RowFormat, get, label_of, rating_of, register, rest, shown
from prm_core.formats.messages import AGENT, conversation, to_messages, tools_text


def _chain(messages: Sequence[Any], given: Mapping[str, Any], where: str, neutral: float, noted: Counter[str],
           **fields: Any) -> LabelledChain:
    """What precedes the agent's first message is the prompt; each of its messages is a step.

    Args:
        messages: of the trajectory.
        given: message index → rating, null for none.
        fields: of the chain, beside prompt, steps and labels; its meta gets `indices` (of the steps' messages) and
            `ratings`.
    """
    turns = conversation(messages, where, noted)
    agents = [str(index) for index, message in enumerate(messages) if message.get("role") == AGENT]
    if not agents:
        raise InputError(f"{where}: there is no assistant message, so there is no step to judge")
    # As a column of Parquet, the ratings have every index that any row has.
    foreign = {key for key, rating in given.items() if rating is not None} - set(agents)
    if foreign:
        raise InputError(f"{where}: step_labels names message {shown(min(foreign))}, which is no assistant's; "
                         f"those are {', '.join(agents)}")
    prompt, steps = turns.finish()
    if not steps:
        raise InputError(f"{where}: no assistant message has text or a tool call; remove the record")
    labels = tuple(label_of(given.get(step.ref), neutral, f"{where}: step_labels {step.ref}") for step in steps)
    fields["meta"] |= {"indices": [int(step.ref) for step in steps], "ratings": given}
    return LabelledChain(prompt, steps, labels, **fields)


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
        return _chain(get(row, "traj", list, where), {}, where, neutral, noted,
                      outcome=None if reward not in (0, 1) else reward == 1, source=self.name, meta={"rest": row})

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        return chain.meta["rest"]


@register
class AgentProcessBench(RowFormat):
    """AgentProcessBench (Fan et al. 2026): `messages`, `tools`, `step_labels` ({"message index": -1, 0 or 1}).

    A record without `step_labels`, such as one of tau-bench, is one that nobody rated.
    """

    name = "agentprocessbench"
    rated = unlabelled = observations = True

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        if "messages" not in row and "traj" in row:
            return TauBench().parse_row(where, row, neutral, noted)
        given = get({"step_labels": None, **row}, "step_labels", (dict, type(None)), where)
        final = row.get("final_label")
        return _chain(get(row, "messages", list, where), given or {}, where, neutral, noted,
                      outcome=None if final not in (-1, 1) else final == 1, source=self.name,
                      tools=tools_text(row.get("tools"), where), meta={"rest": rest(row, "step_labels")})

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        own = self.own(chain)
        final = {None: None, True: 1, False: -1}[chain.outcome]
        if chain.source == TauBench.name:
            record = chain.meta["rest"]
            own = chain.meta | {"rest": {**rest(record, "traj"), "question": chain.prompt, "messages": record["traj"],
                                         "tools": [], "final_label": final}}
        elif not own:
            messages = to_messages(chain.prompt, chain.steps)
            indices = [index for index, message in enumerate(messages) if message["role"] == AGENT]
            own = {"rest": {"question": chain.prompt, "messages": messages,
                                "tools": json.loads(chain.tools or "[]"), "final_label": final},
                   "indices": indices, "ratings": {}}
        labels = dict(own["ratings"])
        for index, label in zip(own["indices"], chain.labels, strict=True):
            rating = rating_of(label, labels.pop(str(index), None))
            if rating is not None:
                labels[str(index)] = rating
        return {**own["rest"], "step_labels": labels}

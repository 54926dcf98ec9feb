"""Trajectories of tool-using agents as chat messages: AgentProcessBench rates the agent's messages, tau-bench none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import LabelledChain, RowFormat, get, label_of, rating_of, register, rest, shown
from prm_core.formats.messages import calls, check, content, spoken
from prm_core.types import Step


def _chain(messages: Sequence[Any], given: Mapping[str, Any], where: str, neutral: float, noted: Counter[str],
           **fields: Any) -> LabelledChain:
    """What precedes the agent's first message is the prompt. Each of its messages is a step, its text what it said and
    the tools it called; the replies up to its next message are the step's observation.

    Args:
        messages: of the trajectory.
        given: message index → rating, null for none.
        fields: of the chain, beside prompt, steps and labels; its meta gets `indices` (of the steps' messages) and
            `ratings`.
    """
    for index, message in enumerate(messages):
        check(message, f"{where}: message {index}")
    agents = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not agents:
        raise InputError(f"{where}: there is no assistant message, so there is no step to judge")
    # As a column of Parquet, the ratings have every index that any row has.
    foreign = {key for key, rating in given.items() if rating is not None} - {str(index) for index in agents}
    if foreign:
        raise InputError(f"{where}: step_labels names message {shown(min(foreign))}, which is no assistant's; "
                         f"those are {', '.join(map(str, agents))}")
    steps, labels, indices = [], [], []
    for index, following in zip(agents, [*agents[1:], len(messages)], strict=True):
        at = f"{where}: message {index}"
        text = "\n".join(filter(None, (content(messages[index], at).strip(), calls(messages[index], at))))
        if not text:
            noted["messages without text or tool call left out"] += 1
            continue
        heard = [spoken(messages[n], f"{where}: message {n}") for n in range(index + 1, following)]
        steps.append(Step(text, "\n".join(heard)))
        labels.append(label_of(given.get(str(index)), neutral, f"{where}: step_labels {index}"))
        indices.append(index)
    if not steps:
        raise InputError(f"{where}: no assistant message has text or a tool call; remove the record")
    prompt = "\n\n".join(content(message, where) for message in messages[:agents[0]])
    fields["meta"] |= {"indices": indices, "ratings": given}
    return LabelledChain(prompt, tuple(steps), tuple(labels), **fields)


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
                      meta={"rest": rest(row, "step_labels")})

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        own = self.own(chain)
        final = {None: None, True: 1, False: -1}[chain.outcome]
        if chain.source == TauBench.name:
            record = chain.meta["rest"]
            own = chain.meta | {"rest": {**rest(record, "traj"), "question": chain.prompt, "messages": record["traj"],
                                         "tools": [], "final_label": final}}
        elif not own:
            messages = _messages(chain)
            indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
            own = {"rest": {"question": chain.prompt, "messages": messages, "tools": [], "final_label": final},
                   "indices": indices, "ratings": {}}
        labels = dict(own["ratings"])
        for index, label in zip(own["indices"], chain.labels, strict=True):
            rating = rating_of(label, labels.pop(str(index), None))
            if rating is not None:
                labels[str(index)] = rating
        return {**own["rest"], "step_labels": labels}


def _messages(chain: LabelledChain) -> Sequence[dict[str, str]]:
    messages = [{"role": "user", "content": chain.prompt}]
    for step in chain.steps:
        messages.append({"role": "assistant", "content": step.text})
        if step.observation:
            messages.append({"role": "tool", "content": step.observation})
    return messages

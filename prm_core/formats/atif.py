"""ATIF, the Agent Trajectory Interchange Format, versions 1.0 to 1.8: what some forty agents write of their runs.

A record is a run with those of its sub-agents in it; each is read as a chain, and the record is kept whole, so that it
is written again as it was but for labels that have changed. ATIF has no field for labels: they stand where agentpile,
the one that publishes labelled runs in it, puts them, `extra.agentpile.labels`.

Source: Harbor's RFC 0001 and the models of `harbor` 0.25.0 and `atif` 1.8.0; the label's shape: `agentpile` 0.3.1.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import (
    Format,
    LabelledChain,
    Labels,
    as_rating_or_label,
    get,
    get_list,
    rating_or_label,
    register,
    score_in,
    shown,
)
from prm_core.formats.messages import CALLS_WITHOUT_RESULT, Turns, as_text, call_ids, from_text, tools_text
from prm_core.platform.records import Row
from prm_core.turns import SPOKEN, is_empty, written
from prm_core.types import Call, Step

VERSION, VERSIONS = "ATIF-v1.8", re.compile(r"ATIF-v1\.[0-8]")
# In `extra`: other projects' labels and outcome, and what of ours ATIF has no place for.
SHARED, OURS = "agentpile", "prm"
# What of ours says something of a model's score, and goes with it.
SCORED = ("score", "version", "calibrated")
# A rating (-1, 0, 1) or a probability of a step; and Who&When's first error.
STEP_LABEL, FIRST_ERROR = "step_label", "mistake_step"


@dataclass(frozen=True, slots=True)
class _Run:
    """A run of a record: the record's own, or a sub-agent's in it.

    Attributes:
        where: names it in errors.
        body: its object in the record.
        name: what labels call it, None where it has no id.
        above: the run that it lies in, None for the record's own.
    """

    where: str
    body: Mapping[str, Any]
    name: str | None
    above: _Run | None = None


def _runs(body: Any, where: str, above: _Run | None = None) -> Iterator[_Run]:
    """The run and, behind it, those of its sub-agents, as they lie in each other."""
    if not isinstance(body, dict):
        raise InputError(f"{where} is {shown(body)}, expected an object")
    get({"extra": None, **body}, "extra", (dict, type(None)), where)
    run = _Run(where, body, body.get("trajectory_id") or body.get("session_id"), above)
    yield run
    for index, inner in enumerate(get_list(body, "subagent_trajectories", where)):
        yield from _runs(inner, f"{where}: subagent_trajectories {index}", run)


def _parent(run: _Run) -> str:
    """The run and the step that a sub-agent's run was started by, as far as it is known; empty for the outermost."""
    if run.above is None:
        return ""
    for step in run.above.body["steps"]:
        results = (step.get("observation") or {}).get("results") or ()
        if run.name is not None and any(
                isinstance(ref, dict) and run.name in (ref.get("trajectory_id"), ref.get("session_id"))
               for result in results for ref in result.get("subagent_trajectory_ref") or ()):
            return f"{run.above.name or ''}/{step['step_id']}"
    return f"{run.above.name or ''}"


def _text(value: Any, where: str, noted: Counter[str]) -> str:
    """A message or a result's content; parts that are no text are counted."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise InputError(f"{where} is {shown(value)}, expected a text or a list of content parts")
    texts = [part["text"] for part in value if isinstance(part.get("text"), str)]
    if len(texts) < len(value):
        noted["images and sounds left out"] += len(value) - len(texts)
    return "\n".join(texts)


def _calls(step: Mapping[str, Any], where: str) -> tuple[Call, ...]:
    """The tool calls, in order."""
    found = []
    for call in get_list(step, "tool_calls", where):
        if not isinstance(call, dict) or not all(isinstance(call.get(name), str) for name in
                                                 ("tool_call_id", "function_name")):
            raise InputError(f"{where}: a tool call is {shown(call)}, expected an object with tool_call_id, "
                             "function_name and arguments")
        arguments = _ours(call, "arguments")
        if arguments is None:
            arguments = as_text(call.get("arguments") or {})
        found.append(Call(call["function_name"], arguments, id=call["tool_call_id"]))
    return tuple(found)


def _results(step: Mapping[str, Any], calls: Sequence[Call], where: str, noted: Counter[str]
             ) -> tuple[tuple[Call, ...], str]:
    """The calls with what came back, whatever order it came in, and what answers no call."""
    observation = step.get("observation") or {}
    results = observation.get("results") if isinstance(observation, dict) else None
    if observation and not isinstance(results, list):
        raise InputError(f"{where}: observation is {shown(observation)}, expected an object with a list `results`")
    ids = [call.id for call in calls]
    said: dict[str | None, list[str]] = {}
    failed = set()
    for result in results or ():
        if not isinstance(result, dict):
            raise InputError(f"{where}: a result is {shown(result)}, expected an object")
        call = result.get("source_call_id")
        if call is not None and call not in ids:
            raise InputError(f"{where}: a result answers the call {shown(call)}, and the step's calls are "
                             f"{', '.join(ids) or 'none'}; correct its source_call_id")
        text = _text(result.get("content"), f"{where}: the content of a result", noted)
        refs = get_list(result, "subagent_trajectory_ref", where)
        text = text or "\n".join(f"[sub-agent {ref.get('trajectory_id') or ref.get('trajectory_path')}]"
                                 for ref in refs if isinstance(ref, dict))
        said.setdefault(call, []).append(text)
        if _extra(result, OURS).get("failed") is True:
            failed.add(call)
    if missing := sum(name not in said for name in ids):
        noted[CALLS_WITHOUT_RESULT] += missing
    answered = tuple(replace(call, result="\n".join(said[call.id]) if call.id in said else None,
                             failed=call.id in failed) for call in calls)
    return answered, "\n".join(filter(None, said.get(None, ())))


def _chain(run: _Run, noted: Counter[str]) -> tuple[str, tuple[Step, ...]]:
    """Prompt and steps, each with the number that it has in the record.

    What a model wrote is a step; what users, systems and rules said, and what was copied from an earlier run, is
    context: before the first step part of the prompt, later of the step before it.
    """
    turns = Turns(noted)
    for number, step in enumerate(get(run.body, "steps", list, run.where), 1):
        where = f"{run.where}: step {number}"
        if not isinstance(step, dict) or step.get("step_id") != number:
            raise InputError(f"{where} has the step_id {shown(step.get('step_id') if isinstance(step, dict) else step)}"
                             f", and steps are numbered from 1 on; number them anew")
        source = step.get("source")
        if source not in ("system", "user", "agent"):
            raise InputError(f"{where}: source is {shown(source)}, expected system, user or agent")
        calls, reply = _results(step, _calls(step, where), where, noted)
        message = _text(step.get("message"), f"{where}: message", noted)
        thought = get({"reasoning_content": None, **step}, "reasoning_content", (str, type(None)), where) or ""
        actor = _extra(step, SHARED).get("actor")
        agent = _ours(step, "agent") or (actor if isinstance(actor, str) else "")
        said = Step(message, reply, agent, thought, calls, ref=str(number))
        copied = bool(step.get("is_copied_context"))
        if source == "agent" and not copied and step.get("llm_call_count") != 0 and not is_empty(said):
            turns.say(said)
            continue
        if source == "agent":
            noted["agent's steps that no model wrote, or without text and call, read as context"] += 1
        role, name = _ours(step, "role"), _ours(step, "name") or ""
        for text in (written(said), *(call.result for call in calls if call.result), reply):
            turns.hear(role if role in SPOKEN else source, text, name)
    return "\n\n".join(turns.prompt), tuple(turns.steps)


def _numbers(steps: Sequence[Step]) -> list[int]:
    return [int(step.ref) for step in steps]


def _ours(body: Mapping[str, Any], name: str) -> str | None:
    """A text of ours in `extra`; whatever else another project keeps under that name is theirs."""
    found = _extra(body, OURS).get(name)
    return found if isinstance(found, str) else None


def _extra(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What a project has put into `extra`, nothing where that is no object."""
    extra = body.get("extra")
    found = extra.get(name) if isinstance(extra, dict) else None
    return found if isinstance(found, dict) else {}


def _given_labels(body: Mapping[str, Any]) -> list[Any]:
    labels = _extra(body, SHARED).get("labels")
    return labels if isinstance(labels, list) else []


def _addressed(label: Any) -> tuple[str | None, Any]:
    """The run and the step that a label is about, None for what it does not say."""
    target = label.get("target") if isinstance(label, dict) else None
    if not isinstance(target, dict) or target.get("kind") != "step" or not isinstance(target.get("address"), dict):
        return None, None
    return target["address"].get("trajectory"), target["address"].get("step")


def _is_read(label: Any) -> bool:
    """Whether a label says of a step that it is right or wrong, in one of the two ways known here."""
    return type(_addressed(label)[1]) is int and label.get("name") in (STEP_LABEL, FIRST_ERROR)


def _labels(root: _Run, run: _Run, numbers: Sequence[int], neutral: float, noted: Counter[str]) -> Labels:
    """Labels of a run's steps, from its own `extra` and, by its name, from the record's."""
    places = {number: index for index, number in enumerate(numbers)}
    found: list[float | None] = [None] * len(numbers)
    for holder in (root, run) if root is not run else (run,):
        for label in _given_labels(holder.body):
            if not _is_read(label):
                continue
            about, number = _addressed(label)
            if about != run.name and not (about is None and holder is run):
                continue
            if number not in places:
                noted["labels of steps that are no agent's left out"] += 1
                continue
            place, value = places[number], label.get("value")
            if label["name"] == STEP_LABEL:
                where = f"{run.where}: the label of step {number}"
                found[place] = rating_or_label(value, neutral, where)
            elif value is True:
                found[: place + 1] = [*[1.0] * place, 0.0]
    return tuple(found)


def _scores(run: _Run, numbers: Sequence[int]) -> tuple[Labels, str]:
    """Scores that steps have in their `extra`, and the version of the model that gave the first of them."""
    ours = [_extra(run.body["steps"][number - 1], OURS) for number in numbers]
    scores = tuple(score_in(one.get("score")) for one in ours)
    versions = [one["version"] for one in ours if isinstance(one.get("version"), str)]
    return (scores if any(score is not None for score in scores) else ()), versions[0] if versions else ""


@register
class Atif(Format):
    """ATIF 1.0 to 1.8. `extra.agentpile.labels` gives labels: `step_label` (-1, 0, 1 or a probability) and Who&When's
    `mistake_step`, before which all steps are right; `extra.agentpile.outcome.success` the outcome. A model's scores
    stand in each step's `extra.prm`."""

    name = "atif"
    rated = soft = unlabelled = observations = scored = True

    def parse(self, rows: Iterable[Row], neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        for where, row in rows:
            version = row.get("schema_version")
            if not isinstance(version, str) or not VERSIONS.fullmatch(version):
                raise InputError(f"{where}: schema_version is {shown(version)}, expected ATIF-v1.0 to {VERSION}")
            runs = list(_runs(row, where))
            names = [run.name for run in runs if run.name is not None]
            if twice := [name for name in names if names.count(name) > 1]:
                raise InputError(f"{where}: two runs are called {shown(twice[0])}; give each a trajectory_id of its "
                                 "own, since labels and results name runs by it")
            for number, run in enumerate(runs):
                prompt, steps = _chain(run, noted)
                if not steps:
                    noted["runs without an agent's step left out"] += 1
                    continue
                outcome = _extra(run.body, SHARED).get("outcome")
                success = outcome.get("success") if isinstance(outcome, dict) else None
                agent = get({"agent": {}, **run.body}, "agent", dict, run.where)
                yield LabelledChain(
                    prompt, steps, _labels(runs[0], run, _numbers(steps), neutral, noted),
                    _ours(run.body, "answer"), success if isinstance(success, bool) else None, self.name,
                    {"document": where, "record": row, "run": number, "neutral": neutral},
                    tools_text(get_list(agent, "tool_definitions", run.where), run.where),
                    run.name if isinstance(run.name, str) else "", *_scores(run, _numbers(steps)), _parent(run))

    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        alone = itertools.count()
        for _, group in itertools.groupby(
            chains, lambda chain: chain.meta["document"] if chain.source == self.name else next(alone)
        ):
            same = list(group)
            yield self._again(same) if same[0].source == self.name else _anew(same[0])

    def _again(self, chains: Sequence[LabelledChain]) -> dict[str, Any]:
        """The record that chains were read from, with the labels and scores they have now."""
        record = copy.deepcopy(chains[0].meta["record"])
        runs = list(_runs(record, ""))
        for chain in chains:
            run, numbers = runs[chain.meta["run"]], _numbers(chain.steps)
            if _scores(run, numbers) != (chain.scores, chain.scorer):
                _put_scores(run.body, numbers, chain)
            if _labels(runs[0], run, numbers, chain.meta["neutral"], Counter()) == chain.labels:
                continue
            for holder in (runs[0], run) if run is not runs[0] else (run,):
                labels = _given_labels(holder.body)
                labels[:] = [label for label in labels if not (
                    _is_read(label) and (_addressed(label)[0] or holder.name) == run.name)]
            _put_labels(run.body, run.name, numbers, chain.labels)
        return record


def _put_labels(body: Any, name: str | None, numbers: Sequence[int], labels: Labels) -> None:
    """Adds the labels to a run's `extra`. Raises InputError where something else stands in their place."""
    extra = body["extra"] = body.get("extra") or {}
    shared = extra.setdefault(SHARED, {})
    if not isinstance(shared, dict) or not isinstance(shared.get("labels", []), list):
        raise InputError(f"run {name or ''}: extra.{SHARED} is {shown(shared)}, and labels are to stand in its list "
                         "`labels`; take it out of the record")
    given = [
        {"name": STEP_LABEL, "target": {"kind": "step", "address": {"trajectory": name, "step": number}},
         "value": as_rating_or_label(label), "label_source": OURS}
        for number, label in zip(numbers, labels, strict=True) if label is not None]
    shared["labels"] = [*_given_labels(body), *given]


def _put_scores(body: Any, numbers: Sequence[int], chain: LabelledChain) -> None:
    """Puts the scores into the steps' `extra`, in place of another model's and of what was said about those.

    Raises InputError where something else stands in their place.
    """
    for number, score in zip(numbers, chain.scores or (None,) * len(numbers), strict=True):
        step = body["steps"][number - 1]
        extra = step.get("extra") or {}
        if not isinstance(extra, dict) or not isinstance(extra.get(OURS, {}), dict):
            raise InputError(f"step {number}: extra is {shown(extra)}, and the score is to stand in its object {OURS}; "
                             "take it out of the record")
        ours = {name: value for name, value in extra.get(OURS, {}).items() if name not in SCORED}
        ours |= {} if score is None else {"score": score, "version": chain.scorer}
        extra = {name: value for name, value in extra.items() if name != OURS} | ({OURS: ours} if ours else {})
        step.pop("extra", None)
        if extra:
            step["extra"] = extra


def _anew(chain: LabelledChain) -> dict[str, Any]:
    """A record of a chain from elsewhere."""
    steps: list[dict[str, Any]] = [{"step_id": 1, "source": "user", "message": chain.prompt}]
    numbers = []
    for index, step in enumerate(chain.steps):
        numbers.append(len(steps) + 1)
        ids = call_ids(step, index)
        results: list[dict[str, Any]] = [
            {"source_call_id": id, "content": call.result}
            | ({"extra": {OURS: {"failed": True}}} if call.failed else {})
            for id, call in zip(ids, step.calls, strict=True) if call.result is not None]
        results += [{"content": step.observation}] if step.observation else []
        body: dict[str, Any] = {"step_id": numbers[-1], "source": "agent", "message": step.text}
        if step.reasoning:
            body["reasoning_content"] = step.reasoning
        if step.calls:
            body["tool_calls"] = [{"tool_call_id": id, "function_name": call.name, **_arguments(call)}
                                  for id, call in zip(ids, step.calls, strict=True)]
        if results:
            body["observation"] = {"results": results}
        if step.agent:
            body["extra"] = {OURS: {"agent": step.agent}}
        steps.append(body)
        for message in step.context:
            ours = {"role": message.role} if message.role == "agent" else {}
            ours |= {"name": message.name} if message.name else {}
            steps.append({"step_id": len(steps) + 1, "source": "system" if message.role == "system" else "user",
                          "message": message.text} | ({"extra": {OURS: ours}} if ours else {}))
    agent: dict[str, Any] = {"name": "unknown", "version": "unknown"}
    if chain.tools:
        agent["tool_definitions"] = [{"type": "function", "function": tool} for tool in json.loads(chain.tools)]
    body = {"schema_version": VERSION, "agent": agent, "steps": steps,
            "extra": {SHARED: {"outcome": {"success": chain.outcome}}}}
    if chain.answer is not None:
        body["extra"][OURS] = {"answer": chain.answer}
    _put_labels(body, None, numbers, chain.labels)
    if chain.scores:
        _put_scores(body, numbers, chain)
    if chain.id:
        body["trajectory_id"] = chain.id
    return body


def _arguments(call: Call) -> dict[str, Any]:
    """ATIF's are an object; the text that the agent wrote stands beside it where the object would read otherwise."""
    given = from_text(call.arguments)
    arguments = given if isinstance(given, dict) else {}
    return {"arguments": arguments} | (
        {} if as_text(arguments) == call.arguments else {"extra": {OURS: {"arguments": call.arguments}}})

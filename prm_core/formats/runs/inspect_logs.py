"""Logs of Inspect evaluations, as JSON: a chain for each sample. (`inspect log dump` makes JSON of an .eval archive.)

Labels and scores of steps are score events with `intermediate` among a sample's events, as scorers that look at a run
while it goes on leave them; their metadata names the message, whose id, or else its index, is the step's `ref`.

Source: `inspect_ai` 0.3.285, log version 2; event/_score.py, scorer/_metric.py, model/_chat_message.py.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import Format, LabelledChain, Labels, get, get_list, label_between, register, score_in, shown
from prm_core.formats.messages import conversation, named, tools_text
from prm_core.platform.records import Row
from prm_core.types import Step

STEP_LABEL, STEP_SCORE = "step_label", "prm_step"
# Long or repeated texts stand beside the messages, which then name them.
ATTACHED = ("attachment://", "tc://")
RIGHT, WRONG = ("C", 1, 1.0, True), ("I", 0, 0.0, False)


def _attached(value: Any, texts: Mapping[str, Any], noted: Counter[str]) -> Any:
    """A value with the texts that it names in their places."""
    if isinstance(value, list):
        return [_attached(one, texts, noted) for one in value]
    if isinstance(value, dict):
        return {name: _attached(one, texts, noted) for name, one in value.items()}
    if isinstance(value, str) and value.startswith(ATTACHED):
        text = texts.get(value.split("://", 1)[1])
        if isinstance(text, str):
            return text
        noted["texts that the log names and does not hold"] += 1
    return value


def _events(sample: Mapping[str, Any]) -> list[Any]:
    """The events of a sample; older logs have them in `transcript`."""
    transcript = sample.get("transcript")
    found = transcript.get("events") if isinstance(transcript, dict) else sample.get("events")
    return found if isinstance(found, list) else []


def _is(event: Any, scorer: str) -> bool:
    return (isinstance(event, dict) and event.get("event") == "score" and event.get("intermediate") is True
            and event.get("scorer") == scorer and isinstance(event.get("score"), dict)
            and isinstance(event["score"].get("metadata"), dict))


def _said(sample: Mapping[str, Any], scorer: str, refs: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Values of a scorer's events by step, the last one where a step has several, and the version that it names."""
    found: dict[str, Any] = {}
    version = ""
    for event in _events(sample):
        if _is(event, scorer) and named(event["score"]["metadata"], "message") in refs:
            found[named(event["score"]["metadata"], "message")] = event["score"].get("value")
            version = named(event["score"]["metadata"], "version")
    return found, version


def _labels(sample: Mapping[str, Any], refs: Sequence[str], where: str) -> Labels:
    found, _ = _said(sample, STEP_LABEL, refs)
    return tuple(label_between(found[ref], f"{where}: the label of message {ref}") if ref in found else None
                 for ref in refs)


def _scores(sample: Mapping[str, Any], refs: Sequence[str]) -> tuple[Labels, str]:
    found, version = _said(sample, STEP_SCORE, refs)
    scores = tuple(score_in(found.get(ref)) for ref in refs)
    return (scores, version) if any(score is not None for score in scores) else ((), "")


def _outcome(sample: Mapping[str, Any]) -> bool | None:
    """Whether the sample was solved, where it has one scorer and that says so."""
    scores = sample.get("scores")
    values = [score.get("value") for score in scores.values() if isinstance(score, dict)] if isinstance(
        scores, dict) else []
    if len(values) != 1 or not isinstance(values[0], str | int | float):
        return None
    return True if values[0] in RIGHT else False if values[0] in WRONG else None


@register
class Inspect(Format):
    """A log a record: `samples`, each with `messages`, `target`, `scores` and `events`."""

    name = "inspect"
    soft = unlabelled = observations = scored = True

    def refusal(self, chain: LabelledChain) -> str | None:
        return None if chain.source == self.name else "is a log, which only its own chains have; write atif"

    def parse(self, rows: Iterable[Row], neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        for where, log in rows:
            get(log, "eval", dict, where)
            samples = get_list(log, "samples", where)
            if not samples:
                noted["logs without samples left out"] += 1
            for number, sample in enumerate(samples):
                at = f"{where}: sample {number}"
                if not isinstance(sample, dict):
                    raise InputError(f"{at} is {shown(sample)}, expected an object")
                prompt, steps, tools = _read(sample, at, noted)
                if not steps:
                    noted["samples without an answer of the model left out"] += 1
                    continue
                refs, target = [step.ref for step in steps], sample.get("target")
                yield LabelledChain(
                    prompt, steps, _labels(sample, refs, at), target if isinstance(target, str) else None,
                    _outcome(sample), self.name, {"document": where, "record": log, "sample": number}, tools,
                    "/".join(filter(None, (named(sample, "id"), named(sample, "epoch")))), *_scores(sample, refs))

    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        for _, group in itertools.groupby(chains, lambda chain: chain.meta["document"]):
            same = list(group)
            log = copy.deepcopy(same[0].meta["record"])
            for chain in same:
                sample, refs = log["samples"][chain.meta["sample"]], [step.ref for step in chain.steps]
                if _labels(sample, refs, "") != chain.labels:
                    _put(sample, STEP_LABEL, refs, chain.labels, "")
                if _scores(sample, refs) != (chain.scores, chain.scorer):
                    _put(sample, STEP_SCORE, refs, chain.scores or (None,) * len(refs), chain.scorer)
            yield log


def _read(sample: Mapping[str, Any], where: str, noted: Counter[str]) -> tuple[str, tuple[Step, ...], str]:
    """Prompt, steps and tools of a sample."""
    beside = [sample.get("attachments"), (sample.get("transcript") or {}).get("content") if isinstance(
        sample.get("transcript"), dict) else None]
    texts = {name: text for one in beside if isinstance(one, dict) for name, text in one.items()}
    messages = _attached(get_list(sample, "messages", where), texts, noted)
    prompt, steps = conversation(messages, where, noted).finish()
    ids = [named(messages[int(step.ref)], "id") for step in steps]
    if all(ids) and len(set(ids)) == len(ids):
        steps = tuple(replace(step, ref=id) for step, id in zip(steps, ids, strict=True))
    offered = next((event["tools"] for event in _events(sample)
                    if isinstance(event, dict) and event.get("event") == "model" and event.get("tools")), None)
    return prompt, steps, tools_text(_attached(offered, texts, noted), where)


def _put(sample: dict[str, Any], scorer: str, refs: Sequence[str], values: Labels, version: str) -> None:
    """Puts a scorer's values among a sample's events, in place of those there were."""
    kept = [event for event in _events(sample) if not _is(event, scorer)]
    kept += [{"event": "score", "intermediate": True, "scorer": scorer,
              "score": {"value": value, "metadata": {"message": ref} | ({"version": version} if version else {})}}
             for ref, value in zip(refs, values, strict=True) if value is not None]
    holder = sample["transcript"] if isinstance(sample.get("transcript"), dict) else sample
    holder["events"] = kept

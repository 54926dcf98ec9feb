"""The review queue as Label Studio tasks with the labelling interface that shows them, and Label Studio's export read
as answers. Formats: https://labelstud.io/guide/task_format (a JSON export, not JSON-MIN).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.platform.tables import read_table
from prm_core.review.files import Answer, parse_answer, plain, reviewer_name, verdict_line

log = logging.getLogger(__name__)

# What the strategies say is folded away: a reviewer who reads it first tends to agree with it.
LABELING_CONFIG = """\
<View>
  <Header value="Question" size="5"/>
  <Text name="prompt" value="$prompt"/>
  <Header value="Steps so far" size="5"/>
  <Text name="steps_before" value="$steps_before"/>
  <Header value="Is this step right, given the question and the steps so far?" size="4"/>
  <Text name="step" value="$step"/>
  <Choices name="is_correct" toName="step" choice="single" showInline="true" required="true">
    <Choice value="right" hotkey="y"/>
    <Choice value="wrong" hotkey="n"/>
  </Choices>
  <TextArea name="note" toName="step" placeholder="Note (optional)" rows="2" maxSubmissions="1"/>
  <Collapse>
    <Panel value="What the strategies say (judge first)">
      <View><Text name="strategies" value="$strategies"/></View>
    </Panel>
  </Collapse>
</View>
"""


def tasks(queue: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One Label Studio task per row of the queue; what identifies the step travels along in its data."""
    return [
        {"data": {
            "trajectory_id": row["trajectory_id"],
            "step_index": row["step_index"],
            "chain": row["chain"],
            "chance": row.get("chance"),
            "prompt": row["prompt"],
            # Label Studio refuses a text without content.
            "steps_before": "\n".join(f"{n}. {step}" for n, step in enumerate(row["steps_before"], 1)) or "(none)",
            "step": row["step"],
            "strategies": "\n".join(map(verdict_line, row["strategies"])) or "(nothing)",
        }} for row in queue
    ]


def is_export(path: Path) -> bool:
    """Whether a JSON file is to be read as an export; else its records are rows of the queue, or such a flat export."""
    return not path.is_file() or "trajectory_id" not in next(read_table(path, handed_back=True))[1]


def read_export(path: Path, names: Mapping[str, str], only: str | None = None) -> Iterator[Answer]:
    """The annotations of a Label Studio JSON export as answers.

    An annotator is named by e-mail address, or `label-studio-<id>` where the export has only the id. Cancelled
    (skipped) annotations, tasks without any and annotations without a choice are logged with their number.

    Args:
        names: annotator (e-mail address or id) → reviewer name to use instead.
        only: the name of the one annotator of the file.

    Raises InputError on another file format, a task that is none of ours, an annotator in `names` who is not there,
    and, with `only`, more than one annotator.
    """
    raw = store.read_json(path)
    if not isinstance(raw, list) or not all(isinstance(task, dict) and "annotations" in task for task in raw):
        raise InputError(f"{path}: not a Label Studio export in the format JSON; choose Export, JSON")
    raw = [{**task, "data": plain(task.get("data")), "annotations": plain(task["annotations"]) or []} for task in raw]
    annotators = {_named(by): reviewer_name(name) for by, name in names.items()}
    found = Counter(_annotator(annotation) for task in raw for annotation in task["annotations"]
                    if not annotation.get("was_cancelled"))
    unknown = set(annotators) - set(found)
    if unknown:
        raise InputError(f"{path}: no annotation by {', '.join(sorted(unknown))}; there are some by "
                         f"{', '.join(sorted(found)) or 'nobody'}")
    if only is not None:
        if len(found) > 1:
            raise InputError(f"{path}: annotations by {', '.join(sorted(found))}; name each: --reviewer "
                             f"{min(found)}=NAME …, or leave --reviewer out to keep these names")
        annotators = dict.fromkeys(found, reviewer_name(only))
    yield from _answers(path, raw, annotators)


def _answers(path: Path, raw: Sequence[Mapping[str, Any]], annotators: Mapping[str, str]) -> Iterator[Answer]:
    left: Counter[str] = Counter()
    for number, task in enumerate(raw, 1):
        where = f"{path}: task {task.get('id', number)}"
        left["without annotation"] += not task["annotations"]
        for annotation in task["annotations"]:
            if annotation.get("was_cancelled"):
                left["cancelled"] += 1
                continue
            verdict, note = _judgement(annotation, where)
            left["without a choice"] += verdict is None
            annotator = _annotator(annotation)
            name = annotators.get(annotator) or reviewer_name(annotator)
            row = {**(task["data"] or {}), "is_correct": verdict, "note": note,
                   "updated_at": annotation.get("updated_at") or annotation.get("created_at")}
            yield parse_answer(row, f"{where} by {name}", name)
    for reason, count in left.items():
        if count:
            log.info("%s: %d %s", path, count, reason)


def _annotator(annotation: Mapping[str, Any]) -> str:
    """Who made an annotation; exports hold an id, or an object with an e-mail address."""
    by = plain(annotation.get("completed_by"))
    if isinstance(by, dict):
        by = by.get("email") or by.get("id")
    return _named("unknown" if by is None else str(by))


def _named(annotator: str) -> str:
    return f"label-studio-{annotator}" if annotator.isdigit() else annotator


def _judgement(annotation: Mapping[str, Any], where: str) -> tuple[str | None, str]:
    """The choice and the note of an annotation."""
    verdict, notes = None, []
    for result in plain(annotation.get("result")) or []:
        value = plain(result.get("value")) or {}
        if result.get("from_name") == "is_correct":
            choices = plain(value.get("choices"))
            choices = [choices] if isinstance(choices, str) else choices
            if not isinstance(choices, list) or len(choices) != 1:
                raise InputError(f"{where}: choices are {choices!r}; there must be one, right or wrong")
            verdict = choices[0]
        elif result.get("from_name") == "note":
            text = value.get("text") or []
            notes += [text] if isinstance(text, str) else text
    return verdict, "\n".join(notes)

"""Which columns of a person's record are a problem's, and which part of them: the published names, GSM8K's and MATH's
worked answers, and values that are none.

A problem is made of it in own.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from prm_core.errors import InputError
from prm_core.maths.answers import read_stated_answer, same_value
from prm_core.platform.json_text import broken_command, restore_commands

# In the order in which they are looked for; case, blanks and hyphens do not count.
PROMPTS = ("prompt", "question", "problem", "input", "query", "instruction")
ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth", "reference_answer", "correct_answer",
           "final_ans", "gold_answer", "gold", "target", "output", "response", "completion", "solution")
SOLUTIONS = ("solution", "worked_solution", "rationale", "explanation", "reasoning", "chain_of_thought", "cot")
IDS = ("id", "unique_id")
# A question in two parts: the second alone would be another question.
PARTS = (("instruction", "input"), ("body", "question"), ("passage", "question"), ("context", "question"))
# A longer text is no final answer: nothing can be compared with it.
MAX_ANSWER = 300
# Columns that hold the whole of what somebody wrote, the answer in it.
_WORKED = ("output", "response", "completion", "solution")
# How tables spell that a value is missing.
_MISSING = ("nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "NaT", "inf", "-inf")
_WHOLE_COMMAND = re.compile(r"\\[A-Za-z]{2}")
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_ANNOUNCED = re.compile(r"####|\\boxed|\banswer\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Taken:
    """The parts of a record.

    Attributes:
        prompt, answer: texts, not blank.
        solution: worked steps, None where there are none.
        identity: as given, None where there is none.
        rest: every other field.
        origins: part → where it was found, for people.
        repaired: what was put right, and where, for people.
    """

    prompt: str
    answer: str
    solution: list[str] | None
    identity: str | None
    rest: dict[str, Any]
    origins: dict[str, str]
    repaired: list[str]


def take(record: Mapping[str, Any], where: str) -> Taken:
    """The parts of a record. Raises InputError naming `where` and the field at fault."""
    names: dict[str, str] = {}
    for name in record:
        # A name as it should be wins over one that only means it.
        names[_plain(name)] = _plain(name) if _plain(name) in record else name
    used: dict[str, list[str]] = {}
    prompt, used["prompt"] = _prompt(record, names, where)
    field, raw = _answer_field(record, names, where)
    used["answer"] = [field]
    repaired: list[str] = []
    prompt = _restored(prompt, f"{where}: field {used['prompt'][-1]}", repaired)
    # Before it is cut: a form feed or a carriage return would end a step.
    if isinstance(raw, str):
        raw = _restored(raw, f"{where}: field {field}", repaired)
    answer, how, worked = _answer(raw, field, where)
    column = next((names[name] for name in SOLUTIONS if name in names and record[names[name]] is not None
                   and names[name] != field), None)
    steps = record[column] if column else None
    what = f"{where}: field {column}"
    if isinstance(steps, str):
        steps = _restored(steps, what, repaired)
    elif isinstance(steps, list):
        steps = [_restored(step, what, repaired) if isinstance(step, str) else step for step in steps]
    solution = steps_of(steps, what) if column else None
    used["solution"] = [column] if column else []
    if solution is None and worked is not None:
        solution, used["solution"] = _worked_steps(worked, answer), [field]
    column = next((names[name] for name in IDS if name in names and record[names[name]] is not None), None)
    identity = None if column is None else _text(record[column], f"{where}: field {column}")
    used["id"] = [column] if column else []
    every = {name for fields in used.values() for name in fields}
    origins = {part: " and ".join(f"`{name}`" for name in fields) for part, fields in used.items() if fields}
    if how:
        origins["answer"] += f" ({how})"
    rest = {name: value for name, value in record.items() if name not in every}
    return Taken(prompt, answer, solution, identity, rest, origins, repaired)


def steps_of(value: Any, what: str) -> list[str]:
    """The steps of a worked solution, one a line or an item, none blank. Raises InputError naming `what`."""
    steps = value.splitlines() if isinstance(value, str) else value
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise InputError(f"{what} must be a text with a step per line, or a list of step texts")
    kept = [step.strip() for step in steps if step.strip()]
    if not kept:
        raise InputError(f"{what} holds no step; leave it out or give the steps")
    return kept


def number_text(value: float | Decimal) -> str:
    """A number as people write it: 0.00002, 10000000000000000, 5; never 2e-05, 1e+16 or 5.0."""
    text = format(Decimal(repr(value) if isinstance(value, float) else value), "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _text(value: Any, what: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = number_text(value)
    if isinstance(value, str) and value.strip() and value.strip() not in _MISSING:
        return value.strip()
    hint = ""
    if isinstance(value, bool):
        hint = "; write it as a text"
    elif value is None or isinstance(value, str):
        hint = "; a missing value is none: give it, or remove the record"
    raise InputError(f"{what} is {_shown(value)}, expected a text or a number{hint}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _missing(part: str, known: tuple[str, ...], record: Mapping[str, Any], where: str) -> InputError:
    return InputError(f"{where}: field {part} is missing; a problem has `prompt` and `answer` (or columns named "
                      f"{', '.join(known)}), and may have `solution`, `id`, `domain`; this record has "
                      f"{', '.join(map(str, record)) or 'nothing'}")


def _prompt(record: Mapping[str, Any], names: Mapping[str, str], where: str) -> tuple[str, list[str]]:
    if "prompt" not in names:
        for parts in PARTS:
            fields = [names[part] for part in parts if part in names and record[names[part]] not in (None, "")]
            if len(fields) == 2:
                return "\n".join(_text(record[field], f"{where}: field {field}") for field in fields), fields
    field = next((names[name] for name in PROMPTS if name in names
                  and not (name == "input" and "instruction" in names)), None)
    if field is None:
        raise _missing("prompt", PROMPTS[1:], record, where)
    value = record[field]
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        asked = [turn.get("content") for turn in value if turn.get("role") == "user"]
        if len(asked) != 1 or any(turn.get("role") not in ("user", "system") for turn in value):
            raise InputError(f"{where}: field {field} is a conversation of {len(value)} turns; a problem is one "
                             "question, so give one turn of the user")
        value = asked[0]
    return _text(value, f"{where}: field {field}"), [field]


def _answer_field(record: Mapping[str, Any], names: Mapping[str, str], where: str) -> tuple[str, Any]:
    field = next((names[name] for name in ANSWERS if name in names), None)
    if field is not None:
        return field, record[field]
    # verl's.
    model = record.get("reward_model")
    if isinstance(model, dict) and "ground_truth" in model:
        return "reward_model", model["ground_truth"]
    raise _missing("answer", ANSWERS[1:], record, where)


def _answer(value: Any, field: str, where: str) -> tuple[str, str, str | None]:
    """The final answer, how it was found (empty: it was all of the field), and the worked text around it, if any."""
    what = f"{where}: field {field}"
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        raise InputError(f"{what} is a list of {len(value)}; a problem has one answer, so write it as one text")
    text = _text(value, what)
    alone = "\n" not in text and len(text) <= MAX_ANSWER
    stated = read_stated_answer(text) if _ANNOUNCED.search(text) or not alone else None
    how = ""
    if "####" in text:
        stated, how = text.rpartition("####")[2].strip().partition("\n")[0].strip(), "after ####"
        if not stated:
            raise InputError(f"{what} has nothing after ####; the final answer stands there")
    elif stated is not None:
        how = r"in \boxed" if r"\boxed" in text else "as its text states it"
    elif not alone and _plain(field) in _WORKED:
        raise InputError(f"{what} states no final answer; end it with \"The answer is …\", #### or \\boxed, or give "
                         "`answer`")
    answer = _text(text if stated is None else stated, what)
    if len(answer) > MAX_ANSWER:
        raise InputError(f"{what} is {len(answer)} characters long, and {MAX_ANSWER} are the most an answer may have; "
                         "give the final answer alone, or after #### at the end of a worked one")
    if _THOUSANDS.fullmatch(answer) and how == "after ####":
        answer = answer.replace(",", "")
    return answer, how, text if how and (_plain(field) in _WORKED or not alone) else None


def _worked_steps(text: str, answer: str) -> list[str]:
    """The lines of a worked answer as steps, without the results that GSM8K marks for a calculator; the last one states
    the answer in the chain's own words."""
    body = text.rpartition("####")[0] if "####" in text else text
    steps = [line.strip() for line in _ANNOTATION.sub("", body).splitlines() if line.strip()]
    stated = read_stated_answer(steps[-1]) if steps else None
    if stated is None or not same_value(stated, answer):
        steps.append(f"The answer is {answer}.")
    return steps


def _restored(text: str, what: str, repaired: list[str]) -> str:
    """A text whose LaTeX commands are whole. One fault among commands that are written as they should be is repaired;
    without any such, all of the file may be at fault, in ways that cannot be told apart: InputError."""
    command = broken_command(text)
    if command is None:
        return text
    if not _WHOLE_COMMAND.search(text):
        raise InputError(f"{what} holds a control character where LaTeX has {command}: JSON read a single backslash as "
                         f"an escape; write two there (\\{command}), as json.dumps does")
    repaired.append(f"{command} in {what}")
    return restore_commands(text)

"""Decision models' requests: OpenAI's `POST /v1/decisions` and System One's `POST /v1/systemone`.

Both ask typed questions about a text. A process reward model answers those about whether a step of a trajectory is
right; any other gets a refusal, never a number that means something else. Source: openai 3.54 `types/decision*.py`;
SGLang 0.5.23 `systemone/protocol.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from prm_core.errors import InputError
from prm_core.serving.analysis import TrajectoryAnalysis
from prm_core.serving.http import body
from prm_core.serving.http.asked import Asked
from prm_core.serving.http.native import Strict

# Where a state has its question, and its steps or conversation.
PROMPTS = ("prompt", "task", "question", "problem", "query", "input")
CONVERSATIONS = ("messages", "conversation")
# As MLflow's judges write what they judge into one text.
SECTION = re.compile(r"^(inputs|outputs|conversation): ", re.M)
STEP_NAME = re.compile(r"step[_ -]?(\d{1,6})")
STEP_TEXT = re.compile(r"\b(?:steps\s*\[\s*|step\s*(?:\[\s*|no\.?\s*|number\s*|#\s*|_)?)(\d{1,6})\b", re.I)
LAST_TEXT = re.compile(r"\b(?:last|latest|newest|final|most recent) (?:assistant )?(?:step|turn)\b", re.I)
OUTCOME = re.compile(r"\b(?:final answer|outcome)\b", re.I)
RIGHT = re.compile(r"\b(?:right|correct|valid|true|yes|good)\b", re.I)
WRONG = re.compile(r"\b(?:wrong|incorrect|invalid|false|no|bad|mistakes?|mistaken|errors?|erroneous)\b", re.I)
# What turns a question into another one, or asks of several steps at once.
TWISTED = re.compile(
    r"\b(?:not|never|without|free of|cannot|neither|unless|all|every|each|both|any|up to|until)\b|n't\b", re.I)
YES_OR_NO = ("yes", "no", "true", "false")


class Choice(Strict):
    value: str | bool
    description: str | None = None


class Question(Strict):
    """A question of the Decisions API."""

    type: Literal["predicate", "choice", "score"]
    name: str | None = Field(None, description="`step_0`, `step_1`, …: whether that step is right")
    instructions: str | list[Any] = Field(description="a text, or parts of text")
    choices: list[Choice] | None = Field(None, min_length=2, max_length=255)
    levels: list[Any] | None = None


class DecisionRequest(Strict):
    """A request of the Decisions API."""

    model: str = Field(description="any; the answer says which it is")
    input: str | list[Any] = Field(description="chat messages or items of the Responses API; a text only as MLflow's "
                                               "judges write it")
    questions: Annotated[list[Question], body.FirstFault()] = Field(min_length=1, max_length=400)
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None


class SystemOneQuestion(Strict):
    """A question of System One."""

    type: Literal["noul", "choice", "score"]
    instructions: str | None = None
    criteria: dict[str, Any] | list[Any] | None = Field(None, description="what true and false stand for, or labels")


class SystemOneRequest(Strict):
    """A request of System One."""

    model: str = Field(description="any; the answer says which it is")
    state: Any = Field(description="an object with a prompt and `steps`, or with `messages`; messages; or MLflow's "
                                   "`inputs` and `outputs`")
    questions: dict[str, SystemOneQuestion] = Field(min_length=1, max_length=400)


class InputTokens(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokens(BaseModel):
    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens, as OpenAI counts them; nothing is written."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class Decision(BaseModel):
    """Answers in the order of the questions: `predicate` with a probability, `choice` with one of each, or
    `refusal`."""

    model: str
    answers: list[dict[str, Any]]
    usage: Usage


class SystemOneUsage(BaseModel):
    input_tokens: int
    output_tokens: int


class SystemOneAnswer(BaseModel):
    """Answers by the questions' names: `noul`, `choice` or `refusal`."""

    model: str
    answers: dict[str, dict[str, Any]]
    usage: SystemOneUsage


async def decisions(asked: Asked, values: Mapping[str, Any]) -> dict[str, Any]:
    """Answers of the Decisions API."""
    given = body.checked(DecisionRequest, values)
    state = given.input if isinstance(given.input, list) else _sections(given.input, asked.limits.max_depth)
    said, tokens, known = await _judged(asked, state)
    answers = []
    for question in given.questions:
        answer: dict[str, Any] = {"type": "refusal"}
        if said is not None:
            name, text = question.name or "", _instructions(question.instructions)
            if question.type == "predicate" and (yes := probability(said, name, text)) is not None:
                answer = {"type": "predicate", "probability": yes}
            elif question.type == "choice" and (
                    shares := _choice(said, name, text, [one.value for one in question.choices or ()])):
                best, share = max(shares, key=lambda one: one[1])
                answer = {"type": "choice", "choice": best, "confidence": share,
                          "probabilities": [{"value": value, "probability": share} for value, share in shares]}
        answers.append({"name": question.name, **answer})
    usage = Usage(input_tokens=tokens, input_tokens_details=InputTokens(cached_tokens=known, cache_write_tokens=0),
                  output_tokens=0, output_tokens_details=OutputTokens(reasoning_tokens=0), total_tokens=tokens)
    return Decision(model=asked.served.source, answers=answers, usage=usage).model_dump()


async def systemone(asked: Asked, values: Mapping[str, Any]) -> dict[str, Any]:
    """Answers of System One."""
    given = body.checked(SystemOneRequest, values)
    said, tokens, _ = await _judged(asked, given.state)
    answers: dict[str, dict[str, Any]] = {}
    for name, question in given.questions.items():
        answer: dict[str, Any] = {"type": "refusal"}
        if said is not None:
            text, criteria = question.instructions or "", question.criteria
            if question.type == "noul" and (yes := _noul(said, name, text, criteria)) is not None:
                answer = {"type": "noul", "noul": yes}
            elif question.type == "choice" and isinstance(criteria, dict) and (
                    shares := _choice(said, name, text, list(criteria))):
                best, share = max(shares, key=lambda one: one[1])
                answer = {"type": "choice", "choice": best, "confidence": share, "probabilities": dict(shares)}
        answers[name] = answer
    usage = SystemOneUsage(input_tokens=tokens, output_tokens=0)
    return SystemOneAnswer(model=asked.served.source, answers=answers, usage=usage).model_dump()


def probability(said: TrajectoryAnalysis, name: str, text: str) -> float | None:
    """Probability of yes to a question about a trajectory, None for one that a process reward model cannot answer.

    Which step it is about is said by a name `step_3`, or in the text: "step 3", counted from 0, or "the last step";
    "the final answer" is answered of models with an outcome head. It must ask whether that is right or whether it is
    wrong, in words that say one of them only, and of one step; without text, a name asks whether the step is right.
    """
    way = _asks(text) if text else 1
    right = _right(said, name, text)
    return None if right is None or way == 0 else right if way > 0 else 1 - right


def _right(said: TrajectoryAnalysis, name: str, text: str) -> float | None:
    """Probability that what a question is about is right; None where that is nothing or several things."""
    if TWISTED.search(text):
        return None
    named, told = STEP_NAME.fullmatch(name), {int(number) for number in STEP_TEXT.findall(text)}
    if LAST_TEXT.search(text):
        told.add(len(said.step_scores) - 1)
    if named:
        told.add(int(named[1]))
    if not told and OUTCOME.search(text or name):
        return said.outcome_score
    index = told.pop() if len(told) == 1 else -1
    return said.step_scores[index] if 0 <= index < len(said.step_scores) else None


def _asks(text: str) -> int:
    """1 for a text that asks whether something is right, -1 whether it is wrong, 0 where it says neither or both."""
    right, wrong = bool(RIGHT.search(text)), bool(WRONG.search(text))
    return 0 if right == wrong else 1 if right else -1


def _noul(said: TrajectoryAnalysis, name: str, text: str, criteria: Any) -> float | None:
    """Probability of true; where criteria say what that is, they count and not the way the question is put."""
    if criteria is None:
        return probability(said, name, text)
    right, way = _right(said, name, text), _way(criteria)
    return None if right is None or way == 0 else right if way > 0 else 1 - right


def _way(criteria: Any) -> int:
    """1 where true stands for right, -1 where it stands for wrong, 0 where the criteria say something else."""
    if not isinstance(criteria, dict) or set(criteria) != {"true", "false"}:
        return 0
    true, false = (_asks(str(criteria[name])) for name in ("true", "false"))
    return true if true == -false else 0


def _choice(
    said: TrajectoryAnalysis, name: str, text: str, values: Sequence[str | bool]
) -> list[tuple[Any, float]]:
    """Probability of each of two values, of which one says yes and the other no, or one right and the other wrong;
    empty for others."""
    if sorted(ways := [_asks(str(value)) for value in values]) != [-1, 1]:
        return []
    answers_it = all(str(value).lower() in YES_OR_NO for value in values)
    share = probability(said, name, text) if answers_it else _right(said, name, text)
    return [] if share is None else [(value, share if way > 0 else 1 - share)
                                     for value, way in zip(values, ways, strict=True)]


async def _judged(asked: Asked, state: Any) -> tuple[TrajectoryAnalysis | None, int, int]:
    """What is said of the trajectory in a state, its tokens, and how many of them were known; None where there is no
    trajectory in it."""
    record = _trajectory(state)
    if record is None:
        return None, 0, 0
    request = asked.request(record, "the state")
    [answer], tokens = await asked.answer([request]), asked.tokens([request])
    return answer.analysis, tokens, tokens if answer.known_tokens is None else answer.known_tokens


def _trajectory(state: Any) -> dict[str, Any] | None:
    if isinstance(state, list):
        return {"messages": state}
    if not isinstance(state, Mapping):
        return None
    for name in CONVERSATIONS:
        if isinstance(state.get(name), list):
            return {"messages": state[name]}
    prompt = next((state[name] for name in PROMPTS if isinstance(state.get(name), str)), None)
    if isinstance(state.get("steps"), list) and prompt:
        return {"prompt": prompt, "steps": state["steps"]}
    asked, said = state.get("inputs"), state.get("outputs")
    # As MLflow's traces have them.
    if isinstance(asked, Mapping):
        asked = next((asked[name] for name in PROMPTS if isinstance(asked.get(name), str)), None)
    if isinstance(said, Mapping):
        said = said.get("steps")
    return {"prompt": asked, "steps": said} if isinstance(asked, str) and isinstance(said, list) else None


def _sections(text: str, max_depth: int) -> dict[str, Any] | None:
    """The state that MLflow's judges wrote as one text: `inputs: …`, `outputs: …`, in JSON; None for any other text."""
    parts = SECTION.split(text)
    if len(parts) < 3 or parts[0].strip():
        return None
    found: dict[str, Any] = {}
    for name, written in zip(parts[1::2], parts[2::2], strict=True):
        try:
            found[name] = body.load(written, max_depth)
        except InputError:
            found[name] = written.strip()
    return found


def _instructions(given: str | list[Any]) -> str:
    if isinstance(given, str):
        return given
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in given]
    if not all(isinstance(text, str) for text in texts):
        raise InputError("`questions`: instructions hold a part that is no text; take it out")
    return " ".join(map(str, texts))

"""Requests of training frameworks and their servers: vLLM's `/classify` and `/pooling`, OpenRLHF's `/get_reward`.

They hold texts, in which a model's own step token ends the prompt and every step, as the process reward models that
vLLM serves want it; a chat's messages say more and are read as everywhere. Source: vLLM
`entrypoints/pooling/*/protocol.py` of October 2026; OpenRLHF 0.11 `remote_rm_utils.py`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from prm_core.errors import InputError
from prm_core.serving.http import body
from prm_core.serving.http.asked import Asked
from prm_core.serving.http.native import Strict
from prm_core.serving.service import ScoringAnswer, ScoringRequest

WRONG, RIGHT = "wrong", "right"
PARAGRAPH = "\n\n"
# Of many that are wrong the first is named.
Texts = Annotated[list[str], body.FirstFault()]


class _Texts(Strict):
    model: str | None = Field(None, description="any; the answer says which it is")
    input: str | Texts | None = Field(None, description="prompt and steps, each ended by the model's step token")
    messages: list[Any] | None = Field(None, description="chat messages, in place of `input`; a lone turn of the "
                                                         "assistant is split at the step token")
    user: str | None = None
    priority: int | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    add_special_tokens: bool | None = Field(None, description="not read: the model's encoder knows")
    use_activation: Literal[True] | None = Field(None, description="scores are probabilities")
    truncate_prompt_tokens: Literal[-1] | None = Field(None, description="what does not fit is refused")
    encoding_format: Literal["float"] = "float"


class ClassifyRequest(_Texts):
    """A request of vLLM's `/classify`."""


class PoolingRequest(_Texts):
    """A request of vLLM's `/pooling`."""

    task: Literal["token_classify", "classify"] = Field("token_classify", description="a pair a step; classify: one")


class Tokens(BaseModel):
    """Usage as vLLM has it."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class Class(BaseModel):
    """Of a text: whether all of its steps are right, `probs` of wrong and of right: 1 and 0 where a rule blocks."""

    index: int
    label: str
    probs: list[float]
    num_classes: int = 2


class Classes(BaseModel):
    """An answer of vLLM's `/classify`."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Class]
    usage: Tokens


class Pooled(BaseModel):
    """Of a text: for each step, probabilities of wrong and of right."""

    index: int
    object: str = "pooling"
    data: list[list[float]] | list[float]


class Pooling(BaseModel):
    """An answer of vLLM's `/pooling`."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Pooled]
    usage: Tokens


class RewardRequest(Strict):
    """A request of OpenRLHF."""

    query: str | Texts = Field(description="prompt and response")
    prompts: str | Texts | None = Field(None, description="the prompts alone; without them the step token must say "
                                                              "where each prompt ends")
    labels: Any = Field(None, description="not read")


class Rewards(BaseModel):
    """One reward a query: its step scores put together; 0 for a response without a step, or where a rule blocks."""

    rewards: list[float]


async def classify(asked: Asked, values: Mapping[str, Any]) -> dict[str, Any]:
    """Answers of vLLM's `/classify`."""
    answers, about = await _answered(asked, body.checked(ClassifyRequest, values), "classify")
    scores = [_overall(answer) for answer in answers]
    data = [Class(index=index, label=RIGHT if score >= 0.5 else WRONG, probs=[1 - score, score])
            for index, score in enumerate(scores)]
    return Classes(data=data, **about).model_dump()


async def pooling(asked: Asked, values: Mapping[str, Any]) -> dict[str, Any]:
    """Answers of vLLM's `/pooling`."""
    given = body.checked(PoolingRequest, values)
    answers, about = await _answered(asked, given, "pool")
    data = []
    for index, answer in enumerate(answers):
        assert answer.analysis is not None
        pairs = [[1 - score, score] for score in answer.analysis.step_scores]
        overall = _overall(answer)
        data.append(Pooled(index=index, data=[1 - overall, overall] if given.task == "classify" else pairs))
    return Pooling(data=data, **about).model_dump()


async def get_reward(asked: Asked, values: Mapping[str, Any]) -> dict[str, Any]:
    """Answers of OpenRLHF's remote reward model."""
    given = body.checked(RewardRequest, values)
    queries, prompts = _list(given.query), None if given.prompts is None else _list(given.prompts)
    asked.check_number(len(queries), "query")
    if prompts is not None and len(prompts) != len(queries):
        raise InputError(f"{len(queries)} `query` and {len(prompts)} `prompts`; give one prompt each")
    requests: list[ScoringRequest | None] = []
    for index, query in enumerate(queries):
        where = f"query[{index}]"
        if prompts is None:
            requests.append(_marked(asked, query, where))
            continue
        if not query.startswith(prompts[index]):
            raise InputError(f"{where}: does not begin with prompts[{index}], so that nothing says where the response "
                             "begins")
        steps = _split(asked, query[len(prompts[index]):])
        record = {"prompt": prompts[index], "steps": steps}
        requests.append(asked.request(record, where) if steps else None)
    answers = iter(await asked.answer([request for request in requests if request is not None]))
    return Rewards(rewards=[0.0 if request is None else _overall(next(answers)) for request in requests]).model_dump()


async def _answered(asked: Asked, given: _Texts, kind: str) -> tuple[list[ScoringAnswer], dict[str, Any]]:
    """What is said of the texts or messages of a request, and what an answer says beside it."""
    if (given.input is None) == (given.messages is None):
        raise InputError("give either `input`, texts, or `messages`, a chat")
    if given.messages is not None:
        requests = [_chat(asked, given.messages)]
    else:
        texts = _list(given.input)
        asked.check_number(len(texts), "input")
        requests = [_marked(asked, text, f"input[{index}]") for index, text in enumerate(texts)]
    answers, tokens = await asked.answer(requests), asked.tokens(requests)
    return answers, {"id": f"{kind}-{secrets.token_hex(16)}", "created": int(time.time()), "model": asked.served.source,
                     "usage": Tokens(prompt_tokens=tokens, total_tokens=tokens)}


def _chat(asked: Asked, messages: Sequence[Any]) -> ScoringRequest:
    request = asked.request({"messages": list(messages)}, "`messages`")
    tag = asked.served.service.encoding.separator
    if len(request.steps) == 1 and tag in request.steps[0].text:
        return asked.request({"prompt": request.prompt, "steps": _parts(request.steps[0].text, tag)}, "`messages`")
    return request


def _marked(asked: Asked, text: str, where: str) -> ScoringRequest:
    """A text whose step tokens say where prompt and steps end."""
    tag = asked.served.service.encoding.separator
    prompt, found, rest = text.partition(tag)
    steps = _parts(rest, tag)
    if not found or not steps:
        raise InputError(f"{where}: nothing says where the prompt and each step end; put {tag!r} after each of them")
    return asked.request({"prompt": prompt, "steps": steps}, where)


def _split(asked: Asked, response: str) -> list[str]:
    """The steps of a response: at the model's step token where it is in there, else paragraphs."""
    tag = asked.served.service.encoding.separator
    return _parts(response, tag if tag in response else PARAGRAPH)


def _parts(text: str, tag: str) -> list[str]:
    return [part.strip() for part in text.split(tag) if part.strip()]


def _list(given: str | list[str] | None) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given or ())
    if not texts:
        raise InputError("the request holds no text; give at least one")
    return texts


def _overall(answer: ScoringAnswer) -> float:
    assert answer.analysis is not None
    return answer.analysis.overall_score

"""Kinds of servers: how each wants to be asked for a plain sample of the model, and what an answer says.

A plain sample: no cut of the distribution (top-k, top-p), no penalty, no default of the model's folder or the server.
Each kind has fields of its own for that; a field that is left out is a default that nobody chose.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.platform.endpoint import at
from prm_core.registry import Registry

if TYPE_CHECKING:
    from prm_core.sampling.sampler import Continuation

TOKEN_ID = "token_id:"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for.

    Attributes:
        temperature, max_new_tokens, seed: as `sampler.sample_continuations` has them.
        end_ids: tokens that end a continuation, the tokenizer's end token first.
        ends: the same as text.
        forced: a token that is to be written, whatever the model thinks; None for a sample.
    """

    temperature: float
    max_new_tokens: int
    seed: int
    end_ids: tuple[int, ...]
    ends: tuple[str, ...]
    forced: int | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of server.

    Attributes:
        takes_ids: whether a prompt may be token ids.
        many: whether `n` asks for several continuations of a prompt.
        forces: whether it can be told to write a certain token.
        spare: tokens to ask for beyond the limit, where one that ends a continuation at the limit is reported as cut
            off; they are dropped from those that are.
        fields: of a request, beside model, prompt, max_tokens, temperature and seed.
        about: for people.
    """

    takes_ids: bool
    many: bool
    forces: bool
    spare: int
    fields: Callable[[Asked], dict[str, Any]]
    about: str

    def body(self, model: str, prompt: Sequence[int] | str, asked: Asked, count: int) -> dict[str, Any]:
        """A request for `count` continuations of a prompt."""
        assert count == 1 or self.many
        if asked.forced is None:
            asked = replace(asked, max_new_tokens=asked.max_new_tokens + self.spare)
        return {"model": model, "prompt": prompt, "max_tokens": asked.max_new_tokens,
                "temperature": asked.temperature, **({"seed": asked.seed} if asked.temperature else {}),
                **({"n": count} if self.many else {}), **self.fields(asked)}

    def read(self, answer: Any, asked: Asked, count: int, encoder: Encoder) -> list[Read]:
        """The continuations in an answer, in order. Raises Nonsense where they are not what was asked for."""
        choices = at(answer, "choices")
        if not isinstance(choices, list) or len(choices) != count:
            found = len(choices) if isinstance(choices, list) else "no"
            raise Nonsense(f"has {found} choices instead of {count}: {_shown(answer)}")
        if sorted(str(at(one, "index")) for one in choices) == sorted(map(str, range(count))):
            choices = sorted(choices, key=lambda one: one["index"])
        # Counted for the answer as a whole.
        written = at(answer, "usage", "completion_tokens") if count == 1 else None
        spare = self.spare if asked.forced is None else 0
        return [_read_choice(one, asked, encoder, spare, written) for one in choices]


KINDS: Registry[Kind] = Registry("kind of server")


def _bias(asked: Asked) -> dict[str, Any]:
    return {} if asked.forced is None else {"logit_bias": {str(asked.forced): 100}}


def _openai(asked: Asked) -> dict[str, Any]:
    stops = {"stop": list(asked.ends[1:])} if asked.ends[1:] else {}
    return {"top_p": 1, "logprobs": 1, **stops, **_bias(asked)}


def _vllm(asked: Asked) -> dict[str, Any]:
    return {"top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1, "logprobs": 1, "return_token_ids": True,
            "return_tokens_as_token_ids": True, "skip_special_tokens": False, "spaces_between_special_tokens": False,
            "stop_token_ids": list(asked.end_ids[1:]), **_bias(asked)}


def _sglang(asked: Asked) -> dict[str, Any]:
    return {"top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1, "logprobs": 1, "return_token_ids": True,
            "skip_special_tokens": False, "no_stop_trim": True, "stop_token_ids": list(asked.end_ids[1:]),
            **_bias(asked)}


def _llama_cpp(asked: Asked) -> dict[str, Any]:
    return {"top_k": 0, "min_p": 0, "repeat_penalty": 1, **_openai(asked)}


def _transformers(asked: Asked) -> dict[str, Any]:
    # It samples only where the generation config says so, whatever the temperature; left out, it is the model's.
    config = {"do_sample": asked.temperature > 0, "top_k": 0, "top_p": 1.0, "eos_token_id": list(asked.end_ids),
              "pad_token_id": asked.end_ids[0], "max_new_tokens": asked.max_new_tokens}
    return {"generation_config": json.dumps(config)}


KINDS.register("openai")(Kind(True, True, True, 0, _openai, "what the protocol itself has"))
KINDS.register("vllm")(Kind(True, True, True, 0, _vllm, "`vllm serve`"))
KINDS.register("sglang")(Kind(True, True, True, 0, _sglang, "`sglang.launch_server`"))
KINDS.register("llama.cpp")(Kind(True, False, True, 0, _llama_cpp, "`llama-server`"))
KINDS.register("transformers")(Kind(False, False, False, 1, _transformers, "`transformers serve`"))


class Nonsense(InputError):
    """An answer that is none."""


@dataclass(frozen=True, slots=True)
class Read:
    """A continuation as a server gave it.

    Attributes:
        continuation: its log-probabilities are empty where the server gives none.
        ids_given: whether the ids are the server's, not those of its text.
        exact: whether they are as many as the server wrote.
    """

    continuation: Continuation
    ids_given: bool
    exact: bool


def _read_choice(choice: Any, asked: Asked, encoder: Encoder, spare: int, written: Any) -> Read:
    from prm_core.sampling.sampler import Continuation

    reason = at(choice, "finish_reason")
    if reason not in ("stop", "length"):
        raise Nonsense(f"has finish_reason {reason!r}: {_shown(choice)}")
    ids, given = _ids(choice, encoder)
    logprobs = _logprobs(choice)
    if logprobs and len(logprobs) != len(ids):
        raise Nonsense(f"has {len(logprobs)} log-probabilities for {len(ids)} tokens: {_shown(choice)}")
    known = len(encoder.tokenizer)
    if any(not 0 <= token < known for token in ids):
        raise Nonsense(f"has token {max(ids)}, which the tokenizer here does not know; the server has another model")
    ended = bool(ids) and ids[-1] in asked.end_ids
    # Its last token may be one that the server keeps back.
    exact = given or not isinstance(written, int) or written in (len(ids), len(ids) + (reason == "stop"))
    if reason == "stop" and not ended:
        ids, logprobs, ended = _with_end(choice, ids, asked, given), [], True
    elif reason == "length" and spare:
        ids, ended = ids[:-spare], False
    if given and len(ids) > asked.max_new_tokens:
        raise Nonsense(f"has {len(ids)} tokens, of which {asked.max_new_tokens} were asked for: {_shown(choice)}")
    short = (len(ids) if given else written) if isinstance(written, int) or given else asked.max_new_tokens
    if not ended and short < asked.max_new_tokens:
        raise Nonsense(f"was cut off at {short} of {asked.max_new_tokens} tokens; the server's own limit (its context) "
                       "is lower than this policy's: start it with room for encoder.max_length")
    return Read(Continuation(ids, logprobs, ended), given, exact)


def _ids(choice: Any, encoder: Encoder) -> tuple[list[int], bool]:
    """Token ids of a choice, and whether they are the server's."""
    for found in (at(choice, "token_ids"), _named(at(choice, "logprobs", "tokens")),
                  _listed(at(choice, "logprobs", "content"), "id")):
        if isinstance(found, list) and all(type(token) is int for token in found):
            return list(found), True
    text = at(choice, "text")
    if not isinstance(text, str):
        raise Nonsense(f"has a choice without a text: {_shown(choice)}")
    return encoder.from_text(text), False


def _named(tokens: Any) -> list[int] | None:
    """Ids of tokens that are written as `token_id:17`."""
    if not isinstance(tokens, list) or not all(
            isinstance(token, str) and token.removeprefix(TOKEN_ID).isdigit() and token.startswith(TOKEN_ID)
            for token in tokens):
        return None
    return [int(token.removeprefix(TOKEN_ID)) for token in tokens]


def _listed(content: Any, name: str) -> list[Any] | None:
    return [at(one, name) for one in content] if isinstance(content, list) else None


def _logprobs(choice: Any) -> list[float]:
    """Log-probabilities of a choice's tokens; none where the server gives none."""
    for found in (at(choice, "logprobs", "token_logprobs"), _listed(at(choice, "logprobs", "content"), "logprob")):
        if isinstance(found, list) and found:
            if not all(isinstance(value, int | float) and value <= 1e-3 for value in found):
                raise Nonsense(f"has log-probabilities that are none: {_shown(found)}")
            return [min(float(value), 0.0) for value in found]
    return []


def _with_end(choice: Any, ids: list[int], asked: Asked, given: bool) -> list[int]:
    """The ids with the token that ended them, which the server keeps back."""
    stopped = next((found for name in ("stop_reason", "matched_stop") if (found := at(choice, name)) is not None), None)
    if isinstance(stopped, str) and stopped in asked.ends:
        stopped = asked.end_ids[asked.ends.index(stopped)]
    if stopped is None:
        return [*ids, asked.end_ids[0]]
    if stopped in asked.end_ids and (not given or not ids or ids[-1] != stopped):
        return [*ids, stopped]
    raise Nonsense(f"ended with {stopped!r}, which ends no chain of this policy: the server has other end tokens "
                   f"(generation_config.json) than the tokenizer, whose end is token {asked.end_ids[0]}")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:200]}…"

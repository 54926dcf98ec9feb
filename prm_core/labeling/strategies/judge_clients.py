"""Who answers the judge's requests: an OpenAI-compatible server, or a causal language model on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from prm_core.config import JudgeConfig, ModelsConfig
from prm_core.errors import InputError
from prm_core.models.batching import in_batches
from prm_core.models.loading import load_pretrained, load_tokenizer, model_version, pick_device
from prm_core.models.precision import choose
from prm_core.platform.endpoint import Endpoint, Failure, at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Message(NamedTuple):
    """One message of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


class Request(NamedTuple):
    """A conversation to answer, and the JSON schema of the answer."""

    messages: tuple[Message, ...]
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        text: the answer.
        prompt_tokens, completion_tokens: 0 where nobody counted them (`metered` is false).
        fault: why the answer is none, though the server works: empty, refused, cut off. Asking again may help.
        failure: why there is no answer: the server cannot be reached, refuses or breaks down. It has been retried.
    """

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    metered: bool = True
    fault: str = ""
    failure: str = ""


class JudgeClient(Protocol):
    """Answers requests."""

    version: str

    def ask(self, requests: Sequence[Request], seed: int) -> tuple[list[Reply], int]:
        """Replies in the order of the requests, and how many requests were sent for them, repetitions included."""
        ...


def make_client(settings: JudgeConfig, models: ModelsConfig) -> JudgeClient:
    """The client that the settings ask for.

    Raises InputError when the model has no name or does not load, the endpoint is no http(s) URL, or its server demands
    a key and there is none.
    """
    if not settings.model.strip():
        raise InputError("label.judge.model is empty; name the model at label.judge.endpoint, or a Hugging Face folder "
                         "or hub id without an endpoint, or leave judge out of label.strategies")
    return EndpointClient(settings) if settings.endpoint else LocalClient(settings, models)


class EndpointClient:
    """A server that speaks the chat-completions protocol; how it is asked is `Endpoint`'s."""

    def __init__(self, settings: JudgeConfig) -> None:
        self.settings = settings
        self.version = settings.model
        self._endpoint = Endpoint(settings.endpoint, key_env=settings.api_key_env, timeout=settings.timeout,
                                  retries=settings.retries, concurrency=settings.concurrency, section="label.judge")

    def ask(self, requests: Sequence[Request], seed: int) -> tuple[list[Reply], int]:
        """See `JudgeClient.ask`; at most `concurrency` requests are under way at once."""
        answers, sent = self._endpoint.ask("/chat/completions", [self._body(request, seed) for request in requests])
        return [_read_answer(answer) for answer in answers], sent

    def _body(self, request: Request, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [message._asdict() for message in request.messages],
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_new_tokens,
        }
        if self.settings.temperature > 0:
            # Some servers refuse fields they do not know; without sampling a seed is of no use.
            body["seed"] = seed
        if self.settings.structured == "json_schema":
            body["response_format"] = {"type": "json_schema", "json_schema": {
                "name": "verdicts", "strict": True, "schema": request.schema}}
        elif self.settings.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body


def _read_answer(answer: Any) -> Reply:
    """The reply in a chat completion; servers leave out what they like, so nothing is taken for granted."""
    if isinstance(answer, Failure):
        return Reply(failure=answer.reason)
    tokens = [at(answer, "usage", name) for name in ("prompt_tokens", "completion_tokens")]
    metered = all(isinstance(count, int) for count in tokens)
    counts = tokens if metered else (0, 0)
    text, refusal = (at(answer, "choices", 0, "message", name) for name in ("content", "refusal"))
    fault = ""
    if refusal:
        fault = f"refused: {refusal}"
    elif at(answer, "choices", 0, "finish_reason") == "length":
        fault = "cut off at max_new_tokens"
    elif not isinstance(text, str) or not text.strip():
        fault = "empty answer"
    return Reply(text if isinstance(text, str) else "", *counts, metered=metered, fault=fault)


class LocalClient:
    """A causal language model from a Hugging Face folder or hub id, batches of `concurrency` at once.

    The tokenizer's chat template is used where there is one; without one the messages follow each other as plain text.
    """

    def __init__(self, settings: JudgeConfig, models: ModelsConfig) -> None:
        self.settings = settings
        self.models = models
        self.tokenizer = load_tokenizer(settings.model)
        self.version = model_version(settings.model)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The weights, loaded when the first request comes."""
        from transformers import AutoModelForCausalLM

        dtype = choose(self.models.dtype, pick_device(self.models.device), "models.dtype")
        return load_pretrained(AutoModelForCausalLM, self.settings.model, dtype=dtype, device=self.models.device)

    def ask(self, requests: Sequence[Request], seed: int) -> tuple[list[Reply], int]:
        """See `JudgeClient.ask`; where memory runs out the batch is halved. The global random state is left alone."""
        prompts = [self._encode(request) for request in requests]
        room = getattr(self.model.config, "max_position_embeddings", None) or float("inf")
        replies = [Reply(fault=f"the prompt's {len(ids)} tokens leave no room for an answer in the context of {room}")
                   for ids in prompts]
        # Prompts of like length together: less padding.
        order = sorted((i for i, ids in enumerate(prompts) if len(ids) + self.settings.max_new_tokens <= room),
                       key=lambda i: len(prompts[i]))
        answers = in_batches(order, self.settings.concurrency, lambda rows, start: self._generate(
            [prompts[i] for i in rows], seed + start), "judge")
        for row, ids in zip(order, answers, strict=True):
            replies[row] = self._reply(prompts[row], ids)
        return replies, len(requests)

    def _encode(self, request: Request) -> list[int]:
        messages = [message._replace(content=self._disarmed(message.content)) for message in request.messages]
        if self.tokenizer.chat_template is None:
            text = "\n\n".join(message.content for message in messages) + "\n\n"
            return self.tokenizer.encode(text)
        text = _templated(self.tokenizer, messages)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _disarmed(self, text: str) -> str:
        """The text with the tokenizer's own marks escaped: from a chain they are data."""
        for mark in self.tokenizer.all_special_tokens:
            if mark.strip():
                text = text.replace(mark, f"\\u{ord(mark[0]):04x}{mark[1:]}")
        return text

    def _generate(self, prompts: Sequence[list[int]], seed: int) -> list[list[int]]:
        """Ids written after each prompt, up to and with the one that ends it."""
        import torch

        settings, model = self.settings, self.model
        pad_id = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad_id is None else pad_id
        width = max(map(len, prompts))
        ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)
        sampling = {"do_sample": True, "temperature": settings.temperature} if settings.temperature else {
            "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.inference_mode():
            torch.manual_seed(seed)
            written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=settings.max_new_tokens,
                                     pad_token_id=pad_id, **sampling)[:, width:].tolist()
        ends = self._ends()
        return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in written]

    def _ends(self) -> set[int]:
        configured = self.model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured, self.tokenizer.eos_token_id]
        return {token for token in ends if token is not None}

    def _reply(self, prompt: Sequence[int], written: Sequence[int]) -> Reply:
        ended = bool(written) and written[-1] in self._ends()
        text = self.tokenizer.decode(written[:-1] if ended else written, skip_special_tokens=True)
        fault = "" if text.strip() else "empty answer"
        return Reply(text, len(prompt), len(written), fault=fault if ended else "cut off at max_new_tokens")


def _templated(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The conversation in the tokenizer's chat template; one without a system role gets its text as the user's."""
    from jinja2 import TemplateError

    def render(conversation: Sequence[Message]) -> str:
        return str(tokenizer.apply_chat_template([message._asdict() for message in conversation], tokenize=False,
                                                 add_generation_prompt=True))

    try:
        return render(messages)
    except TemplateError:
        system, user, *rest = messages
        return render([Message("user", f"{system.content}\n\n{user.content}"), *rest])

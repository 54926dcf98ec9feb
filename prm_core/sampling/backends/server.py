"""A policy at an OpenAI-compatible completions server.

What the server can give is found out with its first answers, at the start of the stage: whether a prompt reads there as
the tokens it has here, whether the boundary between steps is shown, whether samples are those of the weights here.
Whatever does not hold is an error then; nothing is repaired in silence.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prm_core.config import Config, SamplingConfig
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.platform.endpoint import Endpoint, Failure, at
from prm_core.sampling.backends.base import Remote, grouped, remote_encoder, seed_of
from prm_core.sampling.backends.kinds import KINDS, Asked, Nonsense, Read
from prm_core.sampling.backends.match import compare
from prm_core.sampling.drawing import Seed, streams_of
from prm_core.sampling.sampler import Continuation, Prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
COMPLETIONS = "/completions"
# Continuations of a first call that are compared with the weights here before the others are asked for.
COMPARED = 16
# Of the boundary, plain tokens of the vocabulary that are written to see whether the server's are the same.
SPELLED = 4


class ServedPolicy(Remote):
    """See the module.

    Args:
        endpoint: the server.
        name: of the model there.
        weights: loads the policy's weights here, to compare; None compares nothing.
    """

    def __init__(
        self, encoder: Encoder, version: str, settings: SamplingConfig, endpoint: Endpoint, name: str,
        weights: Callable[[], PreTrainedModel] | None,
    ) -> None:
        super().__init__(encoder, version, settings)
        self.kind = KINDS[settings.server]
        self._endpoint, self._name, self._weights = endpoint, name, weights
        # Temperatures at which the first answers were looked at, and what log-probabilities are of.
        self._seen: dict[float, str] = {}
        self._probed: set[tuple[int, ...]] = set()
        # Whether a boundary has been seen.
        self._shows = False

    def continue_chains(
        self, chains: Sequence[Sequence[int]], prefixes: Sequence[Prefix], *, temperature: float, max_new_tokens: int,
        batch_size: int, seed: Seed, stop_ids: Sequence[int] = (), avoid: Sequence[Sequence[Continuation]] = (),
    ) -> list[Continuation]:
        """As `Policy.continue_chains`; `batch_size` is the server's business, and what is to be avoided may come again:
        no server can be told. Log-probabilities are empty where it gives none of the distribution that was sampled
        from.

        Raises InputError where the server does not answer, or not what it was asked for.
        """
        if not prefixes or max_new_tokens < 1:
            return [Continuation([], [], False) for _ in prefixes]
        # Marks that the tokenizer does not have are never written.
        ends = (self.encoder.eos_id, *(stop for stop in stop_ids if stop < len(self.encoder.tokenizer)))
        asked = Asked(temperature, max_new_tokens, 0, ends, tuple(self.encoder.as_text([token]) for token in ends))
        rows = [tuple(chains[prefix.chain][: prefix.length]) for prefix in prefixes]
        streams = streams_of(seed, len(rows))
        self._probe(rows[0], asked)
        found: list[Read] = []
        if temperature not in self._seen:
            found = self._draw(rows[:COMPARED], asked, streams[:COMPARED])
            self._check_shown(found, asked)
            self._compare(rows, found, temperature)
        found += self._draw(rows[len(found) :], asked, streams[len(found) :])
        self._check_shown(found, asked)
        self.usage.inexact += sum(not one.exact for one in found)
        known = self._seen[temperature] == "sampling"
        return [one.continuation if known else replace(one.continuation, logprobs=[]) for one in found]

    def _draw(
        self, rows: Sequence[tuple[int, ...]], asked: Asked, streams: Sequence[tuple[int, int]]
    ) -> list[Read]:
        """One continuation for each row, of its seed and stream; rows of one request are of those of its first."""
        groups = grouped(rows, self._endpoint.concurrency if self.kind.many else 1)
        asks = [(group, replace(asked, seed=seed_of(*streams[group[0]])))
                for group in groups]
        found: dict[int, Read] = {}

        def take(number: int, answer: Any) -> None:
            part, own = asks[number]
            found.update(zip(part, self._read(answer, rows[part[0]], own, len(part)), strict=True))

        prompts = {row: self.prompt(row) for row in dict.fromkeys(rows)}
        bodies = [self.kind.body(self._name, prompts[rows[part[0]]], own, len(part)) for part, own in asks]
        answers, sent = self._endpoint.ask(COMPLETIONS, bodies, weights=[len(part) for part, _ in asks], check=take)
        self.usage.requests += sent
        self.usage.retries += sent - len(answers)
        return [found[number] for number in range(len(rows))]

    def prompt(self, row: tuple[int, ...]) -> Sequence[int] | str:
        """A prefix as the server takes it. Raises InputError where no text reads as these tokens."""
        if self.kind.takes_ids:
            return list(row)
        text = self.encoder.as_text(row)
        tokenizer = self.encoder.tokenizer
        # Most tokenizers that have a first token put it there themselves.
        for one in dict.fromkeys((text.removeprefix(tokenizer.bos_token or ""), text)):
            if tuple(tokenizer(one)["input_ids"]) == row:
                return one
        raise self._refused(f"takes text alone, and no text reads as the tokens of {text[:80]!r}…; use a server that "
                            "takes token ids (vLLM, SGLang, llama.cpp), or sample in this process")

    def _read(self, answer: Any, row: tuple[int, ...], asked: Asked, count: int) -> list[Read]:
        if isinstance(answer, Failure):
            raise self._refused(f"gave no answer: {answer.reason}")
        read = at(answer, "usage", "prompt_tokens")
        if read is None and not self.kind.takes_ids:
            raise self._refused("does not say how many tokens it reads in a prefix (usage.prompt_tokens); without that "
                                "nobody can tell whether they are those that are meant")
        if isinstance(read, int) and read != len(row):
            raise self._refused(f"reads {read} tokens in a prefix of {len(row)}: its tokenizer is another one, or adds "
                                "tokens of its own; serve the folder that sampling reads the tokenizer from")
        echoed = at(answer, "choices", 0, "prompt_token_ids")
        if isinstance(echoed, list) and tuple(echoed) != row:
            raise self._refused("reads other tokens in a prefix than are sent; serve the folder that sampling reads "
                                "the tokenizer from")
        try:
            found = self.kind.read(answer, asked, count, self.encoder)
        except Nonsense as error:
            raise self._refused(f"gave an answer that {error}") from None
        self.usage.prompt_tokens += len(row)
        cached = at(answer, "usage", "prompt_tokens_details", "cached_tokens")
        self.usage.cached_tokens += cached if isinstance(cached, int) else 0
        # What was paid for, tokens that were asked for to spare among them.
        written = at(answer, "usage", "completion_tokens")
        self.usage.completion_tokens += written if isinstance(written, int) else sum(
            len(one.continuation.ids) for one in found)
        return found

    def _probe(self, row: tuple[int, ...], asked: Asked) -> None:
        """Has the server write certain tokens, once for each set of ends, to see that they come back as they are; where
        it can be told to."""
        if not self.kind.forces or asked.end_ids in self._probed:
            return
        rng = random.Random("spelled")
        plain = self.encoder.plain_tokens()
        tokens = {*asked.end_ids[1:], *(rng.sample(plain, min(SPELLED, len(plain))) if not self._probed else ())}
        if self.encoder.config.policy_steps == "boundary":
            tokens.add(self.encoder.separator_id)
        for token in sorted(tokens):
            own = replace(asked, max_new_tokens=1, seed=1, forced=token)
            [answer], sent = self._endpoint.ask(COMPLETIONS, [self.kind.body(self._name, self.prompt(row), own, 1)])
            self.usage.requests += sent
            [found] = self._read(answer, row, own, 1)
            if found.continuation.ids != [token]:
                told, shown = self.encoder.as_text([token]), self.encoder.as_text(found.continuation.ids)
                raise self._hides(token) if token in self.encoder.tokenizer.added_tokens_decoder else self._refused(
                    f"told to write {told!r} (token {token}), it gives {shown!r}: its tokenizer is another one, or "
                    f"sampling.server is not {self.settings.server}")
        self._probed.add(asked.end_ids)

    def _check_shown(self, found: Sequence[Read], asked: Asked) -> None:
        """Raises InputError where boundaries matter, none has been seen, and the server may have kept some back."""
        boundary = self.encoder.separator_id
        self._shows = self._shows or any(one.ids_given or boundary in one.continuation.ids for one in found)
        matter = self.encoder.config.policy_steps == "boundary"
        if matter and not self._shows and (asked.end_ids[1:] or not all(one.exact for one in found)):
            raise self._hides(boundary)

    def _hides(self, token: int) -> InputError:
        return self._refused(
            f"does not show {self.encoder.as_text([token])}, without which steps cannot be told apart; serve the copy "
            "that `prm export` makes, let it show special tokens (llama.cpp: --special), or use a server that gives "
            "token ids (vLLM, SGLang)")

    def _compare(self, rows: Sequence[tuple[int, ...]], found: Sequence[Read], temperature: float) -> None:
        """Compares the first answers at a temperature with the weights here, and notes what their log-probabilities
        are of. Raises InputError where they are not of these weights."""
        given = all(one.continuation.logprobs for one in found)
        if self._weights is None:
            # Unseen, they are taken for the model's own, as they are by default at all of these servers.
            self._seen[temperature] = "sampling" if given and temperature == 1 else ""
            log.info("sampling: %s was not compared with the weights here", self._name)
            return
        exact = [number for number, one in enumerate(found) if one.exact]
        match = compare(self._weights(), [rows[number] for number in exact],
                        [found[number].continuation for number in exact], temperature)
        if not exact:
            raise self._refused(f"writes text that reads as other tokens than it counts, in all of {len(found)} "
                                "answers, so that it cannot be compared with the weights here; use a server that gives "
                                "token ids, or set sampling.verify to false")
        if match.fault:
            raise self._refused(
                f"does not sample from the policy {self.version}: {match.fault}. It serves another model, or does not "
                "obey the request (transformers serve --continuous-batching keeps the first request's temperature: "
                "restart it)")
        if given and not match.logprobs:
            raise self._refused("gives log-probabilities that are not the policy's; serve its own weights")
        self._seen[temperature] = match.logprobs
        log.info("sampling: %s at %s writes as the weights here at temperature %g; %s", self._name, self._endpoint.url,
                 temperature, self._gives(found, match.logprobs))

    def _gives(self, found: Sequence[Read], logprobs: str) -> str:
        ids = all(one.ids_given for one in found)
        return (f"token ids {'given' if ids else 'read from its text'}, log-probabilities " + {
            "": "not given", "sampling": "given", "model": "given without the temperature, so not used"}[logprobs])

    def _refused(self, why: str) -> InputError:
        return InputError(f"sampling.endpoint {self._endpoint.url} ({self.settings.server}, model {self._name!r}) "
                          f"{why}")


def load_served(path: str, config: Config, name: str) -> ServedPolicy:
    """The policy of a folder or hub id at the configured server. Its tokenizer is read here, and its weights where they
    are compared.

    Args:
        name: of the model there; empty where it is called as the path.

    Raises InputError where the server cannot be reached with a right key, or serves no such model.
    """
    from prm_core.sampling.policy import load_policy

    settings = config.sampling
    endpoint = Endpoint(settings.endpoint, key_env=settings.api_key_env, timeout=settings.timeout,
                        retries=settings.retries, concurrency=settings.concurrency, section="sampling")
    name = name or path
    if endpoint.models is not None and name not in endpoint.models and settings.server != "transformers":
        raise InputError(f"sampling.endpoint {settings.endpoint} serves {', '.join(endpoint.models)}, and not "
                         f"{name!r}; name one of them at sampling.model")
    encoder, version = remote_encoder(path, config)
    weights = (lambda: load_policy(path, config).model) if settings.verify else None
    return ServedPolicy(encoder, version, settings, endpoint, name, weights)

"""What backends without weights here share: a policy that only writes, what is asked for together, what it cost."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NoReturn

from prm_core.config import Config, SamplingConfig
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.loading import load_tokenizer, model_version, policy_encoder
from prm_core.models.marks import special_tokens
from prm_core.sampling.policy import Policy


@dataclass(slots=True)
class Usage:
    """What a backend was asked for and gave, counted by itself.

    Attributes:
        requests: with repetitions.
        retries: of them.
        prompt_tokens, cached_tokens: read, and of them those that the backend had in a prefix cache, where it says so.
        completion_tokens: written.
        inexact: continuations of a backend without token ids whose text reads as other tokens than were written.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    inexact: int = 0

    def figures(self, settings: SamplingConfig) -> dict[str, float]:
        """By name, with the cost at the configured prices."""
        cost = (self.prompt_tokens * settings.input_price + self.completion_tokens * settings.output_price) / 1e6
        return {**asdict(self), "cost": cost}


class Remote(Policy):
    """A policy whose weights are another program's. It writes, and nothing else can be done with it.

    Args:
        encoder: of the same tokenizer.
        version: names the weights, as of a policy that is here.
        settings: of the backend.
    """

    # Forked workers would each open connections of their own, and lose an engine that is a process apart.
    forks = False

    def __init__(self, encoder: Encoder, version: str, settings: SamplingConfig) -> None:
        self.encoder = encoder
        self.version = version
        self.settings = settings
        self.usage = Usage()

    @property
    def model(self) -> NoReturn:
        """Raises InputError: there is none here."""
        raise InputError(f"the weights of the policy are at sampling.backend {self.settings.backend}, and this needs "
                         "them here; leave the stage out of sampling.stages")

    @contextmanager
    def keeping_prefixes(self) -> Iterator[None]:
        """Nothing is kept here: backends have prefix caches of their own."""
        yield

    def figures(self) -> dict[str, float]:
        return self.usage.figures(self.settings)


def remote_encoder(path: str, config: Config) -> tuple[Encoder, str]:
    """Encoder and version of a policy whose weights are loaded elsewhere, from the same folder.

    Raises InputError where its tokenizer lacks the boundary: here a model gets a row for it, elsewhere it has none.
    """
    tokenizer = load_tokenizer(path)
    separator = config.encoder.separator
    if config.encoder.policy_steps == "boundary" and separator not in special_tokens(tokenizer):
        raise InputError(f"model {path}: its tokenizer has no token {separator}, which only a policy that the chain "
                         "trained writes; set encoder.policy_steps to how this one writes")
    return policy_encoder(tokenizer, config.encoder), model_version(path)


def seed_of(seed: int, stream: int) -> int:
    """Of a request that is about a sample of this seed and stream (`drawing.Seed`)."""
    return random.Random(f"{seed}/{stream}").getrandbits(31)


def grouped(rows: Sequence[tuple[int, ...]], most: int) -> list[list[int]]:
    """Numbers of rows that are asked for in one request: rows that are the same prefix, at most so many. Prefixes that
    begin alike come one after the other: who keeps prefixes has them then."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row, []).append(number)
    return [groups[row][start : start + most] for row in sorted(groups) for start in range(0, len(groups[row]), most)]

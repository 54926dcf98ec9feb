"""What backends share: their names, a policy whose weights are not here, what sampling cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NoReturn

from prm_core.config import Config, SamplingConfig
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.registry import Registry
from prm_core.sampling.policy import Policy

# (path of the policy, config, what the backend calls it: empty is the backend's own guess) → the policy.
Load = Callable[[str, Config, str], Policy]
BACKENDS: Registry[Load] = Registry("sampling backend")


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


@BACKENDS.register("in_process")
def in_process(path: str, config: Config, name: str) -> Policy:
    """The policy loaded here."""
    from prm_core.sampling.policy import load_policy

    return load_policy(path, config)


@BACKENDS.register("server")
def at_a_server(path: str, config: Config, name: str) -> Policy:
    """The policy at an OpenAI-compatible server."""
    from prm_core.sampling.backends.server import load_served

    return load_served(path, config, name)


@BACKENDS.register("vllm")
def by_vllm(path: str, config: Config, name: str) -> Policy:
    """The policy in a vLLM engine of this process."""
    from prm_core.sampling.backends.engine import load_engine

    return load_engine(path, config)


def policy_for(stage: str, path: str, config: Config, *, trained: bool = False) -> Policy:
    """The policy of a folder or hub id, by the backend that the stage (as `sampling.stages` names it) samples with.

    Args:
        trained: whether it is the trained policy, which a server has under another name, or not at all.

    Raises InputError where the backend cannot be used.
    """
    settings = config.sampling
    name = settings.trained_model if trained else settings.model
    here = stage not in settings.stages or (trained and settings.backend == "server" and not name)
    return BACKENDS["in_process" if here else settings.backend](path, config, name)

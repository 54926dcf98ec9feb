"""Backends by name, and which of them a stage samples with."""

from __future__ import annotations

from collections.abc import Callable

from prm_core.config import Config
from prm_core.registry import Registry
from prm_core.sampling.policy import Policy

# (path of the policy, config, what the backend calls it: empty is the same) → the policy.
Load = Callable[[str, Config, str], Policy]
BACKENDS: Registry[Load] = Registry("sampling backend")


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

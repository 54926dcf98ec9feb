"""A policy in a vLLM engine of this process. vLLM is no requirement of the project; it is imported when it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prm_core.config import Config, SamplingConfig
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.loading import one_line
from prm_core.sampling.backends.base import Remote, grouped, remote_encoder, seed_of
from prm_core.sampling.drawing import Seed, streams_of
from prm_core.sampling.sampler import Continuation, Prefix


class EnginePolicy(Remote):
    """A policy whose samples an engine draws.

    Args:
        engine: a `vllm.LLM` that caches prefixes and gives log-probabilities as it samples.
    """

    def __init__(self, encoder: Encoder, version: str, settings: SamplingConfig, engine: Any) -> None:
        super().__init__(encoder, version, settings)
        self._engine = engine

    def continue_chains(
        self, chains: Sequence[Sequence[int]], prefixes: Sequence[Prefix], *, temperature: float, max_new_tokens: int,
        batch_size: int, seed: Seed, stop_ids: Sequence[int] = (), avoid: Sequence[Sequence[Continuation]] = (),
    ) -> list[Continuation]:
        """As `Policy.continue_chains`; `batch_size` is the engine's business, and what is to be avoided may come again:
        no engine can be told."""
        from vllm import SamplingParams

        if not prefixes or max_new_tokens < 1:
            return [Continuation([], [], False) for _ in prefixes]
        ends = (self.encoder.eos_id, *stop_ids)
        rows = [tuple(chains[prefix.chain][: prefix.length]) for prefix in prefixes]
        groups, streams = grouped(rows, len(rows)), streams_of(seed, len(rows))
        settings = [SamplingParams(
            n=len(group), temperature=temperature, max_tokens=max_new_tokens, top_p=1.0, top_k=0, min_p=0.0,
            seed=seed_of(*streams[group[0]]), logprobs=0, stop_token_ids=list(ends),
            ignore_eos=True, detokenize=False) for group in groups]
        answers = self._engine.generate(
            [{"prompt_token_ids": list(rows[group[0]])} for group in groups], settings, use_tqdm=False)
        found: dict[int, Continuation] = {}
        for group, answer in zip(groups, answers, strict=True):
            drawn = [_continuation(one, ends) for one in sorted(answer.outputs, key=lambda one: one.index)]
            found.update(zip(group, drawn, strict=True))
            cached = getattr(answer, "num_cached_tokens", None) or 0
            self.usage.cached_tokens += cached
            found[group[0]] = replace(drawn[0], read=max(len(rows[group[0]]) - 1 - cached, 0))
        self.usage.requests += len(groups)
        self.usage.prompt_tokens += sum(len(rows[group[0]]) for group in groups)
        self.usage.completion_tokens += sum(len(one.ids) for one in found.values())
        return [found[number] for number in range(len(rows))]


def _continuation(output: Any, ends: Sequence[int]) -> Continuation:
    ids = list(output.token_ids)
    logprobs = [float(place[token].logprob) for token, place in zip(ids, output.logprobs, strict=True)]
    return Continuation(ids, logprobs, bool(ids) and ids[-1] in ends)


def load_engine(path: str, config: Config) -> EnginePolicy:
    """The policy of a folder or hub id in an engine. Raises InputError where vLLM is not installed or does not take it.
    """
    try:
        from vllm import LLM
    except ImportError as error:
        raise InputError(f"sampling.backend is vllm, which does not import here ({error}); `pip install vllm` on a "
                         "machine with a GPU, or set it to server or in_process") from None
    settings = config.sampling
    encoder, version = remote_encoder(path, config)
    with one_line(path, "vLLM does not load it", "set sampling.backend to in_process, or lower sampling.memory_share"):
        # Log-probabilities of what is sampled from, and no defaults of the model's folder.
        engine = LLM(model=path, dtype=config.models.dtype, max_model_len=config.encoder.max_length, seed=config.seed,
                     gpu_memory_utilization=settings.memory_share, enable_prefix_caching=True,
                     logprobs_mode="processed_logprobs", generation_config="vllm")
    return EnginePolicy(encoder, version, settings, engine)

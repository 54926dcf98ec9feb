"""A policy: a causal LM with its encoder, sampling whole chains or continuing given ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prm_core.config import Config
from prm_core.models.encoder import Encoder
from prm_core.models.loading import load_encoder, load_pretrained, model_version, pick_device
from prm_core.models.precision import choose
from prm_core.types import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prm_core.models.prefixes.pool import PrefixPool
    from prm_core.sampling.drawing import Seed
    from prm_core.sampling.sampler import Continuation, Prefix


@dataclass(frozen=True, slots=True)
class SampledChain:
    """A chain as sampled: step texts, whether it ended by itself, and how many tokens it took."""

    steps: tuple[str, ...]
    finished: bool
    tokens: int


class Policy:
    """A causal LM that writes chains of steps.

    Args:
        model: in eval mode.
        encoder: of the same tokenizer.
        version: names these weights in trajectories and lineage.
        sampling_memory: GiB that sampling may take; fewer rows than a caller asks for are then decoded together, which
            changes no sample. None is no bound.
    """

    # Whether forked workers may share out what it writes.
    forks = True

    def __init__(
        self, model: PreTrainedModel, encoder: Encoder, version: str, sampling_memory: float | None = None
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.version = version
        self.sampling_memory = sampling_memory
        self._states: PrefixPool | None = None

    def figures(self) -> dict[str, float]:
        """What sampling took, by name, where another program counted it."""
        return {}

    @contextmanager
    def keeping_prefixes(self) -> Iterator[None]:
        """Within the block what was computed of a prefix is kept for calls that go on from it: for those who continue
        the same chains step by step. Changes no sample but by rounding."""
        from prm_core.models.prefixes.pool import PrefixPool

        self._states = PrefixPool(self.model.base_model)
        try:
            yield
        finally:
            self._states = None

    def continue_chains(
        self, chains: Sequence[Sequence[int]], prefixes: Sequence[Prefix], *, temperature: float, max_new_tokens: int,
        batch_size: int, seed: Seed, stop_ids: Sequence[int] = (), avoid: Sequence[Sequence[Continuation]] = (),
    ) -> list[Continuation]:
        """One continuation for each prefix of the encoded chains; see `sampler.sample_continuations`."""
        from prm_core.models.batching import sampling_rows
        from prm_core.sampling.sampler import sample_continuations

        if self.sampling_memory is not None and prefixes:
            tokens = max(prefix.length for prefix in prefixes) + max_new_tokens
            batch_size = min(batch_size, sampling_rows(self.model, self.sampling_memory, tokens))
        return sample_continuations(
            self.model, chains, prefixes, end_id=self.encoder.eos_id, pad_id=self.encoder.pad_id,
            temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed,
            stop_ids=stop_ids, states=self._states, avoid=avoid,
        )

    def sample(
        self, prompts: Sequence[str], *, samples: int, temperature: float, max_new_tokens: int, batch_size: int,
        seed: int,
    ) -> list[list[SampledChain]]:
        """`samples` chains for each prompt, in order. The same arguments give the same chains."""
        from prm_core.sampling.sampler import Prefix

        encoded = [self.encoder.encode_prompt(prompt) for prompt in prompts]
        prefixes = [Prefix(i, len(ids)) for i, ids in enumerate(encoded) for _ in range(samples)]
        drawn = self.continue_chains(encoded, prefixes, temperature=temperature, max_new_tokens=max_new_tokens,
                                     batch_size=batch_size, seed=seed)
        chains = [SampledChain(self.encoder.decode_steps(c.ids), c.finished, len(c.ids)) for c in drawn]
        return [chains[i : i + samples] for i in range(0, len(chains), samples)]

    def encode(self, prompt: str, steps: Sequence[Step]) -> tuple[list[int], list[int]]:
        """Token ids of a chain, and for each k = 0…steps the length of the prefix with the first k steps."""
        encoded = self.encoder.encode(prompt, steps)
        return encoded.ids, [encoded.prompt_length, *(end + 1 for end in encoded.step_ends)]


def load_policy(path: str, config: Config) -> Policy:
    """The policy in a Hugging Face folder or of a hub id.

    Raises InputError when it does not load or its tokenizer does not fit the encoder's separator.
    """
    from transformers import AutoModelForCausalLM

    dtype = choose(config.models.dtype, pick_device(config.models.device), "models.dtype")
    model = load_pretrained(AutoModelForCausalLM, path, dtype=dtype, device=config.models.device)
    encoder = load_encoder(path, model, config.encoder, policy=True)
    return Policy(model, encoder, model_version(path), config.models.sampling_memory)

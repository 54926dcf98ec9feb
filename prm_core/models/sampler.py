"""Batched sampling with a KV cache: many continuations of many prefixes, each chain encoded once.

Any Hugging Face causal LM works. What lives here is the decoding loop; text, steps and answers are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

# Rows are compacted when this share of a batch has finished: copying the cache costs about one decoding step.
COMPACT_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Prefix:
    """Where a continuation starts: the first `length` tokens of chain number `chain`."""

    chain: int
    length: int


@dataclass(frozen=True, slots=True)
class Continuation:
    """Sampled token ids (with the end token where there is one), their log-probabilities, and whether they ended.

    `logprobs` are under the model at the sampling temperature, one for each id.
    """

    ids: list[int]
    logprobs: list[float]
    finished: bool


class _SlotLayer(CacheLayerMixin):
    """Keys and values in one preallocated buffer: appending a token copies the token, not the cache."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()
        rows, heads, length, width = keys.shape
        self.length = length
        self.keys = keys.new_empty(rows, heads, length + room, width)
        self.values = values.new_empty(rows, heads, length + room, values.shape[-1])
        self.keys[:, :, :length], self.values[:, :, :length] = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers are made with the prefill."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    def keep(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]


def draw(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token for each row of logits (rows, vocabulary) and its log-probability; temperature 0 takes the likeliest.

    Sampling inverts the cumulative distribution with one uniform number a row, so it costs one pass over the
    vocabulary and no noise tensor.
    """
    if temperature == 0:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        return logits.argmax(-1), logprobs.amax(-1)
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    cumulative = logprobs.exp().cumsum(-1)
    uniform = torch.rand(logits.shape[0], 1, generator=generator, device=generator.device).to(logits.device)
    # Scaled by the last entry, which rounding leaves a little off 1.
    tokens = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1)


def _prefill(
    model: PreTrainedModel, chains: Sequence[Sequence[int]], prefixes: Sequence[Prefix], pad_id: int
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
    """Encodes each chain that a prefix of the batch needs, once.

    Returns:
        logits after each prefix (prefixes, vocabulary), each layer's keys and values (chains, heads, length, width),
        and the row of each prefix's chain.
    """
    needed: dict[int, int] = {}
    for prefix in prefixes:
        needed[prefix.chain] = max(needed.get(prefix.chain, 0), prefix.length)
    width = max(needed.values())
    ids = torch.full((len(needed), width), pad_id)
    for row, (chain, length) in enumerate(needed.items()):
        ids[row, :length] = torch.tensor(chains[chain][:length])
    # Right padding and causal attention: no real token ever sees a pad, so no mask is needed.
    base = model.base_model
    output = base(input_ids=ids.to(model.device), use_cache=True, past_key_values=DynamicCache())
    order = {chain: row for row, chain in enumerate(needed)}
    rows = torch.tensor([order[prefix.chain] for prefix in prefixes], device=model.device)
    last = torch.tensor([prefix.length - 1 for prefix in prefixes], device=model.device)
    logits = model.get_output_embeddings()(output.last_hidden_state[rows, last])
    return logits, [(layer.keys, layer.values) for layer in output.past_key_values.layers], rows


def _decode_batch(
    model: PreTrainedModel,
    chains: Sequence[Sequence[int]],
    prefixes: Sequence[Prefix],
    *,
    end_id: int,
    pad_id: int,
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> list[Continuation]:
    logits, states, chain_rows = _prefill(model, chains, prefixes, pad_id)
    cache = Cache(layers=[_SlotLayer(k[chain_rows], v[chain_rows], max_new_tokens) for k, v in states])
    del states
    device, width = model.device, cache.get_seq_length()
    lengths = torch.tensor([prefix.length for prefix in prefixes], device=device)
    visible = torch.ones(len(prefixes), width + max_new_tokens, dtype=torch.bool, device=device)
    visible[:, :width] = torch.arange(width, device=device) < lengths[:, None]
    rows = torch.arange(len(prefixes), device=device)
    tokens_out = torch.full((len(prefixes), max_new_tokens), -1, device=device)
    logprobs_out = torch.zeros(len(prefixes), max_new_tokens, device=device)
    alive = torch.ones(len(prefixes), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        tokens, logprobs = draw(logits, temperature, generator)
        tokens_out[rows[alive], step] = tokens[alive]
        logprobs_out[rows[alive], step] = logprobs[alive]
        alive &= tokens != end_id
        left = int(alive.sum())
        if left == 0 or step + 1 == max_new_tokens:
            break
        if left <= (1 - COMPACT_SHARE) * len(rows):
            for layer in cache.layers:
                layer.keep(alive)
            tokens, rows, lengths, visible = tokens[alive], rows[alive], lengths[alive], visible[alive]
            alive = torch.ones(left, dtype=torch.bool, device=device)
        output = model.base_model(
            input_ids=tokens[:, None],
            position_ids=(lengths + step)[:, None],
            attention_mask=visible[:, None, None, : width + step + 1],
            past_key_values=cache,
            use_cache=True,
        )
        logits = model.get_output_embeddings()(output.last_hidden_state[:, -1])
    results = []
    for ids, logprobs in zip(tokens_out.tolist(), logprobs_out.tolist(), strict=True):
        count = next((i for i, token in enumerate(ids) if token < 0), len(ids))
        results.append(Continuation(ids[:count], logprobs[:count], count > 0 and ids[count - 1] == end_id))
    return results


@torch.inference_mode()
def sample_continuations(
    model: PreTrainedModel,
    chains: Sequence[Sequence[int]],
    prefixes: Sequence[Prefix],
    *,
    end_id: int,
    pad_id: int,
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> list[Continuation]:
    """One sampled continuation for each prefix, in order; name a prefix K times for K samples.

    Prefixes are decoded in batches of like length; within a batch each chain is encoded once and its prefixes share
    that pass; finished rows leave the batch. The same arguments give the same samples.

    Args:
        model: a causal LM, in eval mode.
        chains: token ids of whole chains.
        prefixes: where to continue.
        end_id, pad_id: the tokenizer's end and padding tokens.
        temperature: 0 is greedy.
        max_new_tokens: a continuation that reaches it is not finished.
        batch_size: rows decoded together; bounds memory.
        seed: of the samples.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    # Neighbours share a chain (and its encoding) and have about the same number of tokens to go.
    order = sorted(range(len(prefixes)), key=lambda i: (len(chains[prefixes[i].chain]), prefixes[i].chain,
                                                        prefixes[i].length))
    results: list[Continuation | None] = [None] * len(prefixes)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        decoded = _decode_batch(
            model, chains, [prefixes[i] for i in batch], end_id=end_id, pad_id=pad_id, temperature=temperature,
            max_new_tokens=max_new_tokens, generator=generator,
        )
        for index, continuation in zip(batch, decoded, strict=True):
            results[index] = continuation
    return [result for result in results if result is not None]

"""Batched sampling with a KV cache: many continuations of many prefixes, each chain encoded and stored once.

Any Hugging Face causal LM works. What lives here is the decoding loop; text, steps and answers are the caller's.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prm_core.models.batching import in_batches
from prm_core.models.padding import pad
from prm_core.models.prefixes.pool import PrefixPool
from prm_core.models.prefixes.switching import switched_on
from prm_core.sampling import graphed, shared_attention
from prm_core.sampling.distinct import Taken
from prm_core.sampling.drawing import Seed, draw, stream_starts, streams_of, uniforms

# Rows are compacted when this share of a batch has finished.
COMPACT_SHARE = 0.1
# The last rows of a batch, this share of it, stop early and go on together with the last rows of other batches.
POOL_SHARE = 0.03
# Tokens of one forward pass that encodes chains; bounds the memory of activations.
ENCODE_TOKENS = 8192
# Devices on which a decoding step of a model that can is one graph over buffers of a fixed size.
GRAPHED = ("cuda",)


@dataclass(frozen=True, slots=True)
class Prefix:
    """Where a continuation starts: the first `length` tokens of chain number `chain`."""

    chain: int
    length: int


@dataclass(frozen=True, slots=True)
class Continuation:
    """Sampled token ids (with the end token where there is one), their log-probabilities, and whether they ended.

    `logprobs` are under the model at the sampling temperature, one for each id. `read` are the tokens of prefixes that
    were computed for it, none where another's or an earlier call's could be used.
    """

    ids: list[int]
    logprobs: list[float]
    finished: bool
    read: int = field(default=0, compare=False)


def survivors(alive: Tensor) -> Tensor:
    """Numbers of the rows alive (rows,): those among the first stay at their places, the others fill the gaps."""
    left = int(alive.sum())
    numbers = torch.arange(left, device=alive.device)
    numbers[~alive[:left]] = left + alive[left:].nonzero().squeeze(1)
    return numbers


class _Decoder(Protocol):
    """Rows that are decoded together. All hold one more token after each `step`.

    Attributes:
        read: tokens computed of the prefix of each row, before the first step.
    """

    read: list[int]

    def step(self, tokens: Tensor | None) -> Tensor:
        """Logits (rows, vocabulary) after these tokens (rows,); None the first time, for those after the prefixes."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Keeps the rows of these numbers (left,), in this order; see `survivors`."""
        ...


class _SharedDecoder:
    """Chains are encoded and stored once, however many prefixes and rows read them."""

    def __init__(
        self, model: PreTrainedModel, chains: Sequence[Sequence[int]], prefixes: Sequence[Prefix], pad_id: int,
        states: PrefixPool | None,
    ) -> None:
        self.model = model
        # The last token of a prefix is the first that its rows decode, so that encoding need not compute logits.
        needed: dict[int, int] = {}
        for prefix in prefixes:
            needed[prefix.chain] = max(needed.get(prefix.chain, 1), prefix.length - 1)
        order = {chain: row for row, chain in enumerate(needed)}
        device = model.device
        texts = [chains[chain][:length] for chain, length in needed.items()]
        layers, computed = self._encode(texts, pad_id) if states is None else _kept(states, texts)
        left = dict(zip(needed, computed, strict=True))
        self.read = [left.pop(prefix.chain, 0) for prefix in prefixes]
        self.positions = torch.tensor([prefix.length - 1 for prefix in prefixes], device=device)
        self.last = torch.tensor([chains[prefix.chain][prefix.length - 1] for prefix in prefixes], device=device)
        groups = torch.tensor([order[prefix.chain] for prefix in prefixes], device=device)
        self.cache = shared_attention.suffix_cache(layers)
        self.prefix = shared_attention.SharedPrefix(layers, groups, self.positions)

    def _encode(
        self, texts: list[Sequence[int]], pad_id: int
    ) -> tuple[list[tuple[Tensor, Tensor]], list[int]]:
        """Keys and values of each layer (texts, heads, longest, width), computed in slices of bounded size; and how
        many tokens of each text that took."""
        longest = max(map(len, texts))
        rows = max(ENCODE_TOKENS // longest, 1)
        slices = []
        for start in range(0, len(texts), rows):
            ids = pad(texts[start : start + rows], pad_id)
            states = shared_attention.encode(self.model, ids.to(self.model.device))
            room = (0, 0, 0, longest - ids.shape[1])
            slices.append([tuple(torch.nn.functional.pad(state, room) for state in layer) for layer in states])
        layers = [tuple(torch.cat(parts) for parts in zip(*layer, strict=True)) for layer in zip(*slices, strict=True)]
        return layers, [len(text) for text in texts]

    def step(self, tokens: Tensor | None) -> Tensor:
        if tokens is None:
            tokens = self.last
        logits = shared_attention.decode_step(self.model, tokens, self.positions, self.prefix, self.cache)
        self.positions = self.positions + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        self.positions = self.positions[rows]
        self.prefix.keep(rows)
        for layer in self.cache.layers:
            layer.keep(rows)


def _kept(states: PrefixPool, texts: list[Sequence[int]]) -> tuple[list[tuple[Tensor, Tensor]], list[int]]:
    """What `_SharedDecoder._encode` gives, where it is not computed yet."""
    found = states.read(texts)
    longest = max(map(len, texts))
    layers = []
    for parts in zip(*(place.layers() for place, _ in found), strict=True):
        layers.append(tuple(
            torch.stack([torch.nn.functional.pad(row, (0, 0, 0, longest - row.shape[1])) for row in rows])
            for rows in zip(*parts, strict=True)))
    return layers, [computed for _, computed in found]


class _PaddedDecoder:
    """Left-padded rows with the model's own kind of cache, as in `generate`: slower, right for every causal LM."""

    def __init__(
        self, model: PreTrainedModel, chains: Sequence[Sequence[int]], prefixes: Sequence[Prefix], pad_id: int
    ) -> None:
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in parameters
        self.cache_name = "past_key_values" if "past_key_values" in parameters else "cache_params"
        self.extra = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        order = {prefix: row for row, prefix in enumerate(dict.fromkeys(prefixes))}
        # All but the last token, which counts as the first that is decoded.
        left = {prefix: prefix.length - 1 for prefix in order}
        self.read = [left.pop(prefix, 0) for prefix in prefixes]
        texts = [chains[prefix.chain][: prefix.length] for prefix in order]
        # Reversed twice, right padding is left padding.
        self.ids = pad([text[::-1] for text in texts], pad_id).flip(1).to(model.device)
        self.mask = pad([[1] * len(text) for text in texts], 0).flip(1).to(model.device)
        self.copies = torch.tensor([order[prefix] for prefix in prefixes], device=model.device)
        self.cache = None

    def step(self, tokens: Tensor | None) -> Tensor:
        ids = self.ids if tokens is None else tokens[:, None]
        if tokens is not None:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(self.mask), 1)), dim=1)
        positions = {"position_ids": (self.mask.cumsum(1) - 1).clamp_(min=0)[:, -ids.shape[1] :]}
        # A state without columns holds no padding that later tokens would have to be kept from.
        stateful = tokens is not None and self.cache_name == "cache_params"
        output = self.model(
            input_ids=ids, attention_mask=None if stateful else self.mask, use_cache=True, **self.extra,
            **{self.cache_name: self.cache}, **(positions if self.takes_positions else {}),
        )
        self.cache, logits = output[self.cache_name], output.logits[:, -1]
        if tokens is None:
            # Each prefix was encoded once; here its rows part.
            self._select(self.copies)
            logits = logits[self.copies]
        return logits

    def keep(self, rows: Tensor) -> None:
        self._select(rows)

    def _select(self, rows: Tensor) -> None:
        self.cache.reorder_cache(rows)
        self.mask = self.mask[rows]


@dataclass(slots=True)
class _Row:
    """A continuation under way: its place in the list, its seed and stream of random numbers, where it goes on from,
    what it has so far, and what it may not become."""

    place: int
    seed: int
    stream: int
    start: Prefix
    ids: list[int]
    logprobs: list[float]
    avoid: Sequence[Continuation]
    done: bool = False
    read: int = 0


@dataclass(frozen=True, slots=True)
class _Sampling:
    """What `sample_continuations` was asked for."""

    end_ids: tuple[int, ...]
    pad_id: int
    temperature: float
    max_new_tokens: int

    def decode(self, decoder: _Decoder, batch: Sequence[_Row], device: torch.device, leave: int) -> None:
        """Decodes until at most `leave` rows are not done, and writes into the rows what came."""
        size, step = len(batch), 0
        rows = torch.arange(size, device=device)
        starts = stream_starts([row.seed for row in batch], torch.tensor([row.stream for row in batch], device=device))
        # Where each row is in its stream: rows that went on from another batch are not at the start of it.
        counts = torch.tensor([len(row.ids) for row in batch], device=device)
        alive = torch.ones(size, dtype=torch.bool, device=device)
        ends = torch.tensor(self.end_ids, device=device)
        steps: list[tuple[Tensor, Tensor]] = []
        taken = Taken([[(one.ids, one.logprobs) for one in row.avoid] for row in batch], [row.ids for row in batch])
        tokens = None
        while True:
            logits = decoder.step(tokens)
            tokens, logprobs = draw(logits, self.temperature, uniforms(starts, counts + step), taken)
            taken.go_on(tokens)
            column = torch.full((size,), -1, device=device).index_copy_(0, rows, tokens.where(alive, -1))
            steps.append((column, torch.zeros(size, device=device).index_copy_(0, rows, logprobs)))
            step += 1
            alive = alive & ~torch.isin(tokens, ends) & (counts + step < self.max_new_tokens)
            left = int(alive.sum())
            if left <= leave:
                break
            if left <= (1 - COMPACT_SHARE) * len(rows):
                kept = survivors(alive)
                decoder.keep(kept)
                taken.keep(kept)
                tokens, rows, starts, counts = tokens[kept], rows[kept], starts[kept], counts[kept]
                alive = alive[kept]
        ids, logprobs = (torch.stack(part, dim=1).tolist() for part in zip(*steps, strict=True))
        for row, new_ids, new_logprobs in zip(batch, ids, logprobs, strict=True):
            count = next((i for i, token in enumerate(new_ids) if token < 0), step)
            row.ids += new_ids[:count]
            row.logprobs += new_logprobs[:count]
            row.done = row.ids[-1] in self.end_ids or len(row.ids) >= self.max_new_tokens


def _decode_all(
    model: PreTrainedModel, sampling: _Sampling, texts: Sequence[Sequence[int]], waiting: list[_Row], batch_size: int,
    shared: bool, states: PrefixPool | None,
) -> None:
    """Decodes the rows in batches. Where there are several, the last few rows of each are left before they are done."""

    def decode(batch: Sequence[_Row], first: int) -> Sequence[_Row]:
        leave = int(POOL_SHARE * len(batch)) if len(batch) < len(waiting) else 0
        starts = [row.start for row in batch]
        decoder = (_SharedDecoder(model, texts, starts, sampling.pad_id, states) if shared
                   else _PaddedDecoder(model, texts, starts, sampling.pad_id))
        # Rows are written to when their batch is through, so nothing is kept of one that ran out of memory.
        sampling.decode(decoder, batch, model.device, leave)
        for row, read in zip(batch, decoder.read, strict=True):
            row.read += read
        return batch

    in_batches(waiting, batch_size, decode, "sampling")


def _decode_graphed(
    model: PreTrainedModel, sampling: _Sampling, texts: Sequence[Sequence[int]], waiting: list[_Row], batch_size: int
) -> None:
    """`_decode_all` by a graph of the whole step, until every row is done."""

    def decode(batch: Sequence[_Row], first: int) -> Sequence[_Row]:
        prefixes = [tuple(texts[row.start.chain][: row.start.length]) for row in batch]
        found = graphed.decode(
            model, prefixes, [row.stream for row in batch], [row.seed for row in batch], end_ids=sampling.end_ids,
            temperature=sampling.temperature, max_new_tokens=sampling.max_new_tokens)
        read = set()
        for row, prefix, (ids, logprobs) in zip(batch, prefixes, found, strict=True):
            row.ids, row.logprobs, row.done = ids, logprobs, True
            row.read = 0 if prefix in read else row.start.length - 1
            read.add(prefix)
        return batch

    in_batches(waiting, batch_size, decode, "sampling")


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
    seed: Seed,
    stop_ids: Sequence[int] = (),
    states: PrefixPool | None = None,
    avoid: Sequence[Sequence[Continuation]] = (),
) -> list[Continuation]:
    """One sampled continuation for each prefix, in order; name a prefix K times for K samples.

    Prefixes are decoded in batches of like length; within a batch each chain is encoded once, and where the model's
    attention allows it stored once; finished rows leave the batch, and the last rows of all batches go on together.
    The same arguments give the same samples. A sample depends on the seed and the prefix's place in the list (or on the
    seed and stream that are its own), not on `batch_size` (but for rounding).

    Not for two threads with one model. Scoring with it in other threads is safe (see `switched_on`).

    Args:
        model: a causal LM, in eval mode.
        chains: token ids of whole chains.
        prefixes: where to continue; at least one token each.
        end_id, pad_id: the tokenizer's end and padding tokens.
        temperature: 0 is greedy.
        max_new_tokens: a continuation that reaches it is not finished.
        batch_size: rows decoded together; bounds memory. Halved as often as they do not fit.
        seed: of the samples; or a seed and a stream for each.
        stop_ids: tokens that end a continuation as `end_id` does: where somebody else goes on.
        states: what is known of the prefixes, where the model's attention allows it; None to keep nothing.
        avoid: for each prefix what was drawn from it before at this temperature, which is not drawn again (see
            `distinct`), but at temperature 0 or where there is nothing else.
    """
    sampling = _Sampling((end_id, *stop_ids), pad_id, temperature, max_new_tokens)
    texts: list[Sequence[int]] = list(chains)
    rows = [_Row(place, *drawn, prefix, [], [], known) for place, (drawn, prefix, known) in enumerate(
        zip(streams_of(seed, len(prefixes)), prefixes, avoid or [()] * len(prefixes), strict=True))]
    if not rows or max_new_tokens < 1:
        return [Continuation([], [], False) for _ in rows]
    fast = model.device.type in GRAPHED and states is None and not any(avoid) and graphed.supports(model)
    shared = not fast and shared_attention.shares_prefixes(model)
    # Neighbours share a chain (and its encoding) and have about the same number of tokens to go.
    waiting = sorted(rows, key=lambda row: (len(texts[row.start.chain]), row.start.chain, row.start.length))
    with switched_on(model, shared_attention.NAME) if shared else nullcontext():
        while waiting:
            if fast:
                _decode_graphed(model, sampling, texts, waiting, batch_size)
            else:
                _decode_all(model, sampling, texts, waiting, batch_size, shared, states)
            # What the rows left over wrote becomes part of their prefixes, encoded in one pass.
            waiting, texts = [row for row in waiting if not row.done], []
            for number, row in enumerate(waiting):
                origin = prefixes[row.place]
                texts.append([*chains[origin.chain][: origin.length], *row.ids])
                row.start = Prefix(number, len(texts[number]))
            waiting.sort(key=lambda row: row.start.length)
    return [Continuation(row.ids, row.logprobs, row.ids[-1] in sampling.end_ids, row.read) for row in rows]

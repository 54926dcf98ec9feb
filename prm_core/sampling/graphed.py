"""Sampling on a GPU: a step of the model and the draw from its distribution are one graph, rows in buffers of a fixed
size. The samples are those of `sampler`, but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prm_core.models.padding import pad
from prm_core.models.static import decoder as static
from prm_core.models.static.decoder import StaticDecoder
from prm_core.models.static.graph import Graphed
from prm_core.sampling.drawing import draw, stream_starts, uniforms
from prm_core.sampling.shared_attention import encode

# Steps between two looks at which rows are done, each of which waits for the GPU.
LOOK = 16
# Rows of a graph are a multiple of this; at most this share of them is left when fewer go on in a graph of their own.
ROWS, LEFT = 8, 0.5
# Tokens of one forward pass that encodes prefixes; bounds the memory of activations.
ENCODE_TOKENS = 8192


class _Steps:
    """So many rows of a decoder's slots, decoded by a graph of one step. Tensors are (rows,)."""

    def __init__(
        self, model: PreTrainedModel, decoder: StaticDecoder, rows: int, most: int, ends: int, temperature: float
    ) -> None:
        device = model.device

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        # Not the model, which is to be gone when nobody else has it.
        self.head, self.decoder, self.temperature = model.get_output_embeddings(), decoder, temperature
        self.tokens, self.seen, self.starts, self.counts = zeros(rows), zeros(rows), zeros(rows), zeros(rows)
        # While the graph is made every row writes into the slot that no row reads.
        self.slots = torch.full((rows,), decoder.slots - 1, device=device)
        self.alive = zeros(rows, dtype=torch.bool)
        self.ends, self.most, self.place = zeros(ends), zeros(1), zeros(1)
        # By step: what each row drew, -1 where it was done.
        self.ids, self.logprobs = zeros(most, rows), zeros(most, rows, dtype=torch.float32)
        self._graph = Graphed(self._step, self.ends)

    def _step(self, ends: Tensor) -> Tensor:
        hidden = self.decoder.forward(self.tokens[:, None], self.slots, self.seen)[:, 0]
        logits = self.head(hidden)
        tokens, logprobs = draw(logits, self.temperature, uniforms(self.starts, self.counts))
        self.ids.index_copy_(0, self.place, tokens.where(self.alive, -1)[None])
        self.logprobs.index_copy_(0, self.place, logprobs[None])
        self.counts += 1
        self.alive &= ~(tokens[:, None] == ends).any(1) & (self.counts < self.most)
        self.tokens.copy_(tokens)
        self.seen.add_(1).clamp_(max=self.decoder.columns - 1)
        self.place.add_(1).clamp_(max=len(self.ids) - 1)
        return self.alive

    def run(self, most: int) -> int:
        """Up to so many steps, until few rows are left; returns how many were made."""
        self.place.zero_()
        made = 0
        while made < most:
            for _ in range(min(LOOK, most - made)):
                self._graph(self.ends)
                made += 1
            left = int(self.alive.sum())
            if not left or (len(self.alive) > ROWS and left <= LEFT * len(self.alive)):
                break
        return made


class _Engine:
    """A decoder of a model and its graphs, for calls to come."""

    def __init__(self, model: PreTrainedModel, slots: int, columns: int) -> None:
        self.decoder = StaticDecoder(model.base_model, slots + 1, columns)
        self.weights = _weights(model)
        self.graphs: dict[tuple[int, int, int, float], _Steps] = {}

    def serves(self, model: PreTrainedModel, slots: int, columns: int) -> bool:
        """Whether it has room, and reads the weights where they are."""
        return (self.decoder.slots > slots and self.decoder.columns > columns
                and self.weights == _weights(model))

    def steps(self, model: PreTrainedModel, rows: int, most: int, ends: int, temperature: float) -> _Steps:
        """The graph of so many rows."""
        key = (rows, most, ends, temperature)
        if key not in self.graphs:
            self.graphs[key] = _Steps(model, self.decoder, *key)
        return self.graphs[key]


# The newest of each model: its keys and values stay in memory, its graphs need not be made again.
_engines: WeakKeyDictionary[PreTrainedModel, _Engine] = WeakKeyDictionary()
_supported: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def _weights(model: PreTrainedModel) -> tuple[int, ...]:
    return tuple(parameter.data_ptr() for parameter in model.parameters())


def supports(model: PreTrainedModel) -> bool:
    """Whether a model can be decoded so: `static.decoder.supports`, and its head scales no logits."""
    if model not in _supported:
        _supported[model] = static.supports(model.base_model) and _plain_head(model)
    return _supported[model]


@torch.inference_mode()
def _plain_head(model: PreTrainedModel) -> bool:
    ids = torch.arange(4, device=model.device)[None]
    logits = model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    return torch.allclose(model(input_ids=ids, use_cache=False).logits.float(), logits.float(), rtol=1e-2, atol=1e-2)


@torch.inference_mode()
def decode(
    model: PreTrainedModel, prefixes: Sequence[tuple[int, ...]], streams: Sequence[int], seeds: Sequence[int], *,
    end_ids: Sequence[int], temperature: float, max_new_tokens: int,
) -> list[tuple[list[int], list[float]]]:
    """Token ids and log-probabilities of one continuation for each prefix, up to an end or `max_new_tokens`.

    Args:
        streams, seeds: of random numbers, one a row.
    """
    device, count = model.device, len(prefixes)
    rows = -(-count // ROWS) * ROWS
    columns = max(map(len, prefixes)) + max_new_tokens
    engine = _engines.pop(model, None)
    if engine is None or not engine.serves(model, rows, columns):
        # Gone before there is another.
        engine = None
        engine = _Engine(model, rows, columns)
    _engines[model] = engine
    engine.decoder.refresh()
    steps = engine.steps(model, rows, max_new_tokens, len(end_ids), temperature)
    steps.slots.copy_(torch.arange(rows))
    _encode(model, engine.decoder, prefixes)
    filler = rows - count

    def filled(values: Sequence[int], value: int = 0) -> Tensor:
        return torch.tensor([*values, *[value] * filler], device=device)

    steps.tokens.copy_(filled([prefix[-1] for prefix in prefixes]))
    steps.seen.copy_(filled([len(prefix) - 1 for prefix in prefixes]))
    steps.starts.copy_(stream_starts([*seeds, *[0] * filler], filled(streams)))
    steps.counts.zero_()
    steps.alive.copy_(torch.arange(rows) < count)
    numbers = list(range(count))
    found: list[tuple[list[int], list[float]]] = [([], []) for _ in prefixes]
    left = max_new_tokens
    while True:
        steps.ends.copy_(torch.tensor(end_ids))
        steps.most.fill_(max_new_tokens)
        made = steps.run(left)
        left -= made
        columns_of = zip(steps.ids[:made].T.tolist(), steps.logprobs[:made].T.tolist(), strict=True)
        for number, (ids, logprobs) in zip(numbers, columns_of, strict=False):
            drawn = next((at for at, token in enumerate(ids) if token < 0), made)
            found[number][0].extend(ids[:drawn])
            found[number][1].extend(logprobs[:drawn])
        alive = steps.alive.nonzero()[:, 0]
        if not left or not len(alive):
            return found
        # Rows that are done fill up the smaller graph.
        dead = (~steps.alive).nonzero()[:, 0]
        fewer = -(-len(alive) // ROWS) * ROWS
        kept = torch.cat([alive, dead])[:fewer]
        numbers = [numbers[row] for row in alive.tolist()]
        before, steps = steps, engine.steps(model, fewer, max_new_tokens, len(end_ids), temperature)
        for name in ("slots", "tokens", "seen", "starts", "counts", "alive"):
            getattr(steps, name).copy_(getattr(before, name)[kept])


def _encode(model: PreTrainedModel, decoder: StaticDecoder, prefixes: Sequence[tuple[int, ...]]) -> None:
    """Puts keys and values of all but each prefix's last token into its row's slot; equal ones are computed once."""
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, prefix in enumerate(prefixes):
        if len(prefix) > 1:
            rows_of.setdefault(prefix[:-1], []).append(row)
    texts = sorted(rows_of, key=len)
    while texts:
        size = max(1, ENCODE_TOKENS // len(texts[-1]))
        part, texts = texts[-size:], texts[:-size]
        ids = pad(part, 0).to(model.device)
        rows = torch.tensor([row for text in part for row in rows_of[text]], device=model.device)
        source = torch.tensor([at for at, text in enumerate(part) for _ in rows_of[text]], device=model.device)
        for number, (keys, values) in enumerate(encode(model, ids)):
            decoder.keys[number][rows, :, : ids.shape[1]] = keys[source]
            decoder.values[number][rows, :, : ids.shape[1]] = values[source]

"""Sampling against the library's own generation, against exact probabilities, and against itself in other batches."""

from __future__ import annotations

import gc
import logging
import math
import weakref

import pytest
import torch
import transformers

from prm_core.models.prefixes.pool import PrefixPool
from prm_core.models.prefixes.switching import switched_on
from prm_core.sampling import graphed, sampler, shared_attention
from prm_core.sampling.drawing import draw, next_draw, stream_starts, uniforms
from prm_core.sampling.sampler import Prefix, sample_continuations, survivors

END, PAD, VOCABULARY = 1, 0, 13
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": PAD,
    "bos_token_id": None, "eos_token_id": END, "head_dim": 8,
}
# Attention that reads shared prefixes: grouped heads, biases, absolute positions, scaled logits.
SHARED = {
    "llama": ("Llama", {}),
    "llama without groups": ("Llama", {"num_key_value_heads": 4}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "granite": ("Granite", {"logits_scaling": 3.0, "attention_multiplier": 0.2}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
}
# Sliding windows shorter than the chains, soft caps, attention sinks, linear biases, recurrent layers.
OTHERS = {
    "mistral window": ("Mistral", {"sliding_window": 5}),
    "qwen2 window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "gemma2": ("Gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 5}),
    "gpt_oss": ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 5}),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "mamba": ("Mamba", {"state_size": 4}),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
}
CHAINS = [[3, 4, 5, 6, 7, 8, 9], [9, 8, 7], [2], [5, 5, 12, 4, 3, 2, 11, 10, 9, 3, 4, 6]]
PREFIXES = [Prefix(*pair) for pair in ((0, 7), (3, 12), (1, 2), (0, 3), (2, 1), (0, 3), (3, 1), (1, 3))]


def _model(kind: str, extra: dict, seed: int = 0) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **extra})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger weights than at birth, so that attention and the next token depend on the context.
            parameter.add_(torch.randn_like(parameter) * 0.25)
    model.config.eos_token_id = model.generation_config.eos_token_id = END
    return model


def _sample(
    model: transformers.PreTrainedModel, prefixes: list[Prefix] = PREFIXES, chains: list[list[int]] = CHAINS, **changes
) -> list:
    settings = {"end_id": END, "pad_id": PAD, "temperature": 1.0, "max_new_tokens": 40, "batch_size": 8, "seed": 5}
    return sample_continuations(model, chains, prefixes, **{**settings, **changes})


@pytest.fixture(scope="module")
def llama() -> transformers.PreTrainedModel:
    return _model(*SHARED["llama"])


@pytest.mark.parametrize(("name", "shared"), [(n, True) for n in SHARED] + [(n, False) for n in OTHERS])
def test_greedy_equals_generate(name: str, shared: bool) -> None:
    model = _model(*(SHARED if shared else OTHERS)[name])
    assert shared_attention.shares_prefixes(model) == shared
    expected = {}
    for prefix in dict.fromkeys(PREFIXES):
        ids = torch.tensor([CHAINS[prefix.chain][: prefix.length]])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        expected[prefix] = whole[0, prefix.length :].tolist()
    for batch_size in (3, 8):
        got = _sample(model, temperature=0.0, batch_size=batch_size, max_new_tokens=12)
        for prefix, one in zip(PREFIXES, got, strict=True):
            assert one.ids == expected[prefix]
            assert one.finished == (one.ids[-1] == END)
            assert one.finished or len(one.ids) == 12


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_graphed_steps_draw_the_same(
    llama: transformers.PreTrainedModel, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    settings = {"temperature": temperature, "batch_size": 30, "max_new_tokens": 50}
    plain = _sample(llama, PREFIXES * 4, **settings)
    assert temperature == 0 or len({len(one.ids) for one in plain}) > 5, "rows leave at different steps"
    monkeypatch.setattr(sampler, "GRAPHED", ("cpu",))
    asked = []
    own = graphed.decode
    monkeypatch.setattr(graphed, "decode", lambda *args, **kw: asked.append(args) or own(*args, **kw))
    # Again, with what was made for the first call; again, with other weights at the same places.
    for _ in range(2):
        found = _sample(llama, PREFIXES * 4, **settings)
        assert [one.ids for one in found] == [one.ids for one in plain]
        for mine, theirs in zip(found, plain, strict=True):
            assert mine.finished == theirs.finished
            torch.testing.assert_close(torch.tensor(mine.logprobs), torch.tensor(theirs.logprobs), atol=2e-4, rtol=1e-4)
    assert len(asked) == 4
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    try:
        llama.load_state_dict(_model(*SHARED["llama"], seed=1).state_dict())
        other = [one.ids for one in _sample(llama, PREFIXES, **settings)]
        monkeypatch.setattr(sampler, "GRAPHED", ())
        assert other == [one.ids for one in _sample(llama, PREFIXES, **settings)]
    finally:
        llama.load_state_dict(before)


@pytest.mark.parametrize(("name", "can"), [("llama", True), ("qwen2", True), ("mistral", True), ("qwen3", False),
                                           ("granite", False), ("gpt2", False), ("gemma2", False), ("mamba", False),
                                           ("qwen2 window", False)])
def test_graphed_models_are_those_built_like_llama(name: str, can: bool) -> None:
    assert graphed.supports(_model(*{**SHARED, **OTHERS}[name])) == can


@pytest.mark.parametrize("name", ["llama", "mistral window"])
@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_logprobs_are_those_of_a_teacher_forced_pass(name: str, temperature: float) -> None:
    model = _model(*{**SHARED, **OTHERS}[name])
    # So few rows at a time that rows leave batches and go on in others.
    prefixes = PREFIXES * 6
    for prefix, one in zip(prefixes, _sample(model, prefixes, temperature=temperature, batch_size=29), strict=True):
        text = CHAINS[prefix.chain][: prefix.length]
        with torch.inference_mode():
            logits = model(torch.tensor([text + one.ids])).logits[0, len(text) - 1 : -1] / temperature
        expected = logits.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(one.logprobs), expected, atol=2e-4, rtol=1e-4)


def test_samples_follow_the_exact_distribution(llama: transformers.PreTrainedModel) -> None:
    count, prefix, temperature = 6000, Prefix(3, 4), 1.3
    drawn = _sample(llama, [prefix] * count, temperature=temperature, max_new_tokens=2, batch_size=1000)
    text = CHAINS[3][:4]
    with torch.inference_mode():
        first = (llama(torch.tensor([text])).logits[0, -1] / temperature).double().softmax(-1)
        after = torch.tensor([[*text, token] for token in range(VOCABULARY)])
        second = (llama(after).logits[:, -1] / temperature).double().softmax(-1)
    expected = {(END,): float(first[END])}
    expected |= {(a, b): float(first[a] * second[a, b]) for a in range(VOCABULARY) if a != END
                 for b in range(VOCABULARY)}
    assert math.isclose(sum(expected.values()), 1, abs_tol=1e-6)
    seen = {}
    for one in drawn:
        seen[tuple(one.ids)] = seen.get(tuple(one.ids), 0) + 1
    assert seen.keys() <= expected.keys()
    common = [pair for pair, p in expected.items() if p * count >= 5]
    cells = [(seen.get(pair, 0), expected[pair] * count) for pair in common]
    cells.append((count - sum(o for o, _ in cells), count - sum(e for _, e in cells)))
    statistic = sum((observed - mean) ** 2 / mean for observed, mean in cells)
    freedom = len(cells) - 1
    assert freedom > 20
    # Wilson and Hilferty: the cube root of chi-square / freedom is nearly normal; 3.1 deviations are one in a thousand.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert abs(z) < 3.1


@pytest.mark.parametrize("name", ["llama", "mistral window"])
def test_a_sample_depends_on_seed_and_place_only(name: str) -> None:
    model, prefixes = _model(*{**SHARED, **OTHERS}[name]), PREFIXES * 2
    reference = _sample(model, prefixes)
    assert _sample(model, prefixes) == reference
    for batch_size in (1, 5, 16):
        assert [one.ids for one in _sample(model, prefixes, batch_size=batch_size)] == [one.ids for one in reference]
    # The first places draw the same whatever comes after them, and however long rows may become.
    assert [one.ids for one in _sample(model, prefixes[:9])] == [one.ids for one in reference[:9]]
    assert [one.ids for one in _sample(model, prefixes, max_new_tokens=3)] == [one.ids[:3] for one in reference]
    assert [one.ids for one in _sample(model, prefixes, seed=6)] != [one.ids for one in reference]
    # Copies of one prefix are samples of their own.
    assert len({tuple(one.ids) for one in _sample(model, [Prefix(0, 4)] * 12)}) > 6


@pytest.mark.parametrize("graph", [False, True])
def test_samples_with_seeds_of_their_own_are_the_same_whatever_is_beside_them(
    llama: transformers.PreTrainedModel, monkeypatch: pytest.MonkeyPatch, graph: bool
) -> None:
    monkeypatch.setattr(sampler, "GRAPHED", ("cpu",) if graph else ())
    half = len(PREFIXES) // 2
    own = [*((5, place) for place in range(half)), *((6, place) for place in range(len(PREFIXES) - half))]
    together = [one.ids for one in _sample(llama, PREFIXES, seed=own)]
    assert together[:half] == [one.ids for one in _sample(llama, PREFIXES[:half], seed=5)]
    assert together[half:] == [one.ids for one in _sample(llama, PREFIXES[half:], seed=6)]
    assert together[1::2] == [one.ids for one in _sample(llama, PREFIXES[1::2], seed=own[1::2])]
    assert together != [one.ids for one in _sample(llama, PREFIXES, seed=5)]


def test_rows_that_are_pooled_are_the_same_rows(
    llama: transformers.PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes = PREFIXES * 8
    alone = _sample(llama, prefixes, batch_size=64)
    monkeypatch.setattr(sampler, "POOL_SHARE", 0.6)
    batches = []
    decode = sampler._Sampling.decode
    monkeypatch.setattr(sampler._Sampling, "decode", lambda self, decoder, batch, *rest: (
        batches.append([len(row.ids) for row in batch]), decode(self, decoder, batch, *rest))[1])
    pooled = _sample(llama, prefixes, batch_size=16)
    assert [one.ids for one in pooled] == [one.ids for one in alone]
    assert any(len(set(written)) > 1 for written in batches), "no batch held rows from several batches"


def _full_above(monkeypatch: pytest.MonkeyPatch, decoder: type, rows: int, place: str, error: Exception) -> list[int]:
    """Makes a decoder of more than `rows` rows fail when it is made or at its third step; returns sizes decoded."""
    sizes: list[int] = []
    made, stepped = decoder.__init__, decoder.step

    def make(self, model, chains, prefixes, pad_id, *more) -> None:
        sizes.append(len(prefixes))
        self.wanted, self.steps = len(prefixes), 0
        if place == "encoding" and self.wanted > rows:
            raise error
        made(self, model, chains, prefixes, pad_id, *more)

    def step(self, tokens):
        self.steps += 1
        if place == "decoding" and self.wanted > rows and self.steps == 3:
            raise error
        return stepped(self, tokens)

    monkeypatch.setattr(decoder, "__init__", make)
    monkeypatch.setattr(decoder, "step", step)
    return sizes


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize(("name", "decoder"), [("llama", sampler._SharedDecoder),
                                               ("mistral window", sampler._PaddedDecoder)])
@pytest.mark.parametrize("place", ["encoding", "decoding"])
def test_out_of_memory_halves_the_batch_and_changes_no_sample(
    name: str, decoder: type, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, prefixes = _model(*{**SHARED, **OTHERS}[name]), PREFIXES * 5
    reference = _sample(model, prefixes, batch_size=32)
    sizes = _full_above(monkeypatch, decoder, 9, place, OUT_OF_MEMORY)

    with caplog.at_level(logging.WARNING):
        halved = _sample(model, prefixes, batch_size=32)

    assert sizes == [32, 16, 8, 8, 8, 8, 8]
    assert [(one.ids, one.finished) for one in halved] == [(one.ids, one.finished) for one in reference]
    for one, other in zip(halved, reference, strict=True):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=1e-4)
    assert "sampling: out of memory with 32 at once; going on with 16" in caplog.text
    assert "out of memory with 16 at once; going on with 8" in caplog.text


def test_memory_that_a_failed_batch_held_is_free_before_the_next_one(
    llama: transformers.PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the decoder that failed still alive, the smaller one would have to fit beside it."""
    alive: list[weakref.ref] = []
    made, full = sampler._SharedDecoder.__init__, iter([True, True])

    def make(self, *given) -> None:
        gc.collect()
        assert [one() for one in alive if one() is not None] == []
        alive.append(weakref.ref(self))
        made(self, *given)

    def step(self, tokens):
        if next(full, False):
            # A new one each time: an error keeps what its traceback names alive.
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return stepped(self, tokens)

    stepped = sampler._SharedDecoder.step
    monkeypatch.setattr(sampler._SharedDecoder, "__init__", make)
    monkeypatch.setattr(sampler._SharedDecoder, "step", step)
    assert len(_sample(llama, PREFIXES * 2, batch_size=16)) == 16
    assert len(alive) == 2 + 4


def test_other_errors_pass_and_so_does_a_single_row_that_does_not_fit(
    llama: transformers.PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = llama.config._attn_implementation
    with monkeypatch.context() as patch:
        sizes = _full_above(patch, sampler._SharedDecoder, 0, "decoding", RuntimeError("shapes differ"))
        with pytest.raises(RuntimeError, match="shapes differ"):
            _sample(llama)
        assert sizes == [8]
    with monkeypatch.context() as patch:
        sizes = _full_above(patch, sampler._SharedDecoder, 0, "encoding", OUT_OF_MEMORY)
        with pytest.raises(torch.OutOfMemoryError):
            _sample(llama)
        assert sizes == [8, 4, 2, 1]
    assert llama.config._attn_implementation == own


def test_where_continuations_end(llama: transformers.PreTrainedModel) -> None:
    [one] = _sample(llama, [Prefix(0, 7)], temperature=0.0, end_id=-1, max_new_tokens=6)
    assert (len(one.ids), one.finished) == (6, False)
    [ended] = _sample(llama, [Prefix(0, 7)], temperature=0.0, end_id=one.ids[0])
    assert (ended.ids, ended.logprobs, ended.finished) == (one.ids[:1], one.logprobs[:1], True)
    [stopped] = _sample(llama, [Prefix(0, 7)], temperature=0.0, end_id=-1, stop_ids=(one.ids[2], one.ids[0]))
    assert stopped == ended
    [last] = _sample(llama, [Prefix(0, 7)], temperature=0.0, end_id=one.ids[0], max_new_tokens=1)
    assert last.finished
    assert [(one.ids, one.finished) for one in _sample(llama, max_new_tokens=0)] == [([], False)] * len(PREFIXES)
    assert _sample(llama, []) == []


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_shared_and_padded_decoding_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prefixes = _model(*SHARED[name]), PREFIXES * 3
    shared = _sample(model, prefixes)
    monkeypatch.setattr(shared_attention, "shares_prefixes", lambda model: False)
    padded = _sample(model, prefixes)
    assert [one.ids for one in shared] == [one.ids for one in padded]
    for a, b in zip(shared, padded, strict=True):
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4, rtol=1e-4)


def test_a_chain_is_stored_once(llama: transformers.PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = []
    arrange = shared_attention.SharedPrefix.__init__

    def record(self, layers, groups, lengths) -> None:
        stored.append((len(groups), layers[0][0].shape[0]))
        arrange(self, layers, groups, lengths)

    monkeypatch.setattr(shared_attention.SharedPrefix, "__init__", record)
    _sample(llama, [Prefix(chain, length) for chain in (0, 3) for length in (2, 5, 7) for _ in range(4)], batch_size=24)
    assert stored[-1] == (24, 2)


@pytest.mark.parametrize("name", SHARED)
def test_kept_prefixes_change_no_sample_and_are_computed_once(name: str) -> None:
    model = _model(*SHARED[name])
    states = PrefixPool(model.base_model)
    plain = _sample(model, seed=3)
    # Of each chain the first that goes on from it reads it, up to its last token but one at most.
    assert sum(one.read for one in plain) == 6 + 11 + 2 + 1
    first, again = _sample(model, seed=3, states=states), _sample(model, seed=3, states=states)
    for kept in (first, again):
        assert [one.ids for one in kept] == [one.ids for one in plain]
        assert [one.logprobs for one in kept] == [pytest.approx(one.logprobs, abs=1e-4) for one in plain]
    assert [sum(one.read for one in kept) for kept in (first, again)] == [6 + 11 + 2 + 1, 0]
    # The longest chain with more after it: its first eleven tokens, up to a boundary, are there.
    longer = [[*CHAINS[3], 4, 5, 6, 4, 7]]
    [further] = _sample(model, [Prefix(0, 17)], longer, states=states)
    assert further.read == 17 - 1 - 11
    assert further.ids == _sample(model, [Prefix(0, 17)], longer)[0].ids


def test_own_attention_is_back_after_an_error(llama: transformers.PreTrainedModel) -> None:
    own = llama.config._attn_implementation
    ids = torch.tensor([CHAINS[0]])
    with torch.inference_mode():
        before = llama(ids).logits
        with switched_on(llama, shared_attention.NAME):
            assert llama.config._attn_implementation == shared_attention.NAME
            # Scoring goes on as before meanwhile.
            torch.testing.assert_close(llama(ids).logits, before)
    with pytest.raises(IndexError):
        _sample(llama, [Prefix(0, 99)])
    assert llama.config._attn_implementation == own
    _sample(llama)
    assert llama.config._attn_implementation == own


def test_uniforms_are_uniform_and_independent() -> None:
    streams = torch.arange(300)
    starts = stream_starts([7], streams)
    table = torch.stack([uniforms(starts, torch.full_like(streams, count)) for count in range(100)], dim=1)
    assert table.min() >= 0
    assert table.max() < 1
    share = torch.histc(table, bins=20, min=0, max=1) / table.numel()
    assert (share - 0.05).abs().max() < 5 * math.sqrt(0.05 * 0.95 / table.numel())
    for shifted in (table[1:] * table[:-1], table[:, 1:] * table[:, :-1]):
        # Of independent numbers, neighbours' products have mean 1/4 and variance 7/144.
        assert abs(shifted.mean() - 0.25) < 4 * math.sqrt(7 / 144 / shifted.numel())
    assert len(table.unique()) > 0.99 * table.numel()
    assert not torch.equal(table[:, 0], uniforms(stream_starts([8], streams), torch.zeros_like(streams)))
    assert torch.equal(stream_starts([-1], streams), stream_starts([2**64 - 1], streams))


def test_draws_grow_from_one_up_to_the_limit() -> None:
    drawn, seen = 0, []
    while drawn < 16:
        drawn += next_draw(drawn, 16)
        seen.append(drawn)
    assert seen == [1, 2, 3, 4, 6, 9, 13, 16]


def test_survivors_stay_or_fill_gaps() -> None:
    alive = torch.tensor([True, False, True, False, False, True, True])
    assert survivors(alive).tolist() == [0, 5, 2, 6]
    assert survivors(torch.ones(3, dtype=torch.bool)).tolist() == [0, 1, 2]
    assert survivors(torch.zeros(3, dtype=torch.bool)).tolist() == []


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).log().repeat(6, 1)
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-23])
    tokens, logprobs = draw(logits, 1.0, uniform)
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.2, 0.2, 0.5, 0.5, 0.3, 0.3]))
    tokens, logprobs = draw(logits[:1], 0.0, uniform[:1])
    assert tokens.tolist() == [2]
    assert math.isclose(float(logprobs.exp()), 0.5, rel_tol=1e-5)


def test_what_was_drawn_is_not_drawn_again_and_the_rest_follows_the_model(llama: transformers.PreTrainedModel) -> None:
    """Of continuations of two tokens, given those drawn before: in batches in which rows end, leave and go on."""
    count, prefix, settings = 6000, Prefix(3, 4), {"temperature": 1.3, "max_new_tokens": 2, "batch_size": 1000}
    first = _sample(llama, [prefix] * 12, **settings)
    known = {tuple(one.ids): math.exp(sum(one.logprobs)) for one in first}
    # One of them twice is as good as once.
    drawn = _sample(llama, [prefix] * count, **settings, avoid=[[*first, first[0]]] * count)
    assert not known.keys() & {tuple(one.ids) for one in drawn}
    probabilities = {tuple(one.ids): math.exp(sum(one.logprobs)) for one in drawn}
    left = 1 - sum(known.values())
    assert 0.3 < left < 0.95
    cells = [(sum(tuple(one.ids) == ids for one in drawn), p / left * count) for ids, p in probabilities.items()
             if p / left * count >= 5]
    assert len(cells) > 20
    statistic = sum((observed - mean) ** 2 / mean for observed, mean in cells)
    z = ((statistic / len(cells)) ** (1 / 3) - (1 - 2 / (9 * len(cells)))) / math.sqrt(2 / (9 * len(cells)))
    assert abs(z) < 3.1


@pytest.mark.parametrize("name", ["llama", "mistral window"])
def test_all_there_is_comes_once_before_anything_comes_twice(name: str) -> None:
    model, known = _model(*{**SHARED, **OTHERS}[name]), []
    for _ in range(VOCABULARY):
        known += _sample(model, [PREFIXES[0]], max_new_tokens=1, avoid=[known], temperature=1.6, seed=len(known))
    assert sorted(one.ids[0] for one in known) == list(range(VOCABULARY))
    [again] = _sample(model, [PREFIXES[0]], max_new_tokens=1, avoid=[known], temperature=1.6)
    assert again.ids in [one.ids for one in known]


def test_what_is_avoided_is_each_rows_own(llama: transformers.PreTrainedModel) -> None:
    """Whatever is decoded beside it, and where rows leave their batch before they are done."""
    prefixes = PREFIXES * 6
    first = _sample(llama, prefixes)
    avoid = [[one] if place % 2 else [] for place, one in enumerate(first)]
    drawn = _sample(llama, prefixes, avoid=avoid, batch_size=29)
    for place, (one, before) in enumerate(zip(drawn, first, strict=True)):
        assert (one.ids == before.ids) == (place % 2 == 0)

"""Policies that write plain text: how their text becomes steps, and where on their own tokens each step ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.loading import load_encoder, policy_encoder
from prm_core.models.saving import save_language_model
from prm_core.models.segments import JOINERS, SEGMENTERS, TextEncoder
from prm_core.types import Step

TEXT = "Plan.\nStep 1: add\nthem.\n\n2) say 7\n\n \nThe answer is 7."


def steps(name: str, text: str) -> list[str]:
    return [text[start:end] for start, end in SEGMENTERS[name](text)]


@pytest.mark.parametrize(("name", "expected"), [
    ("line", ["Plan.", "Step 1: add", "them.", "2) say 7", "The answer is 7."]),
    ("blank_line", ["Plan.\nStep 1: add\nthem.", "2) say 7", "The answer is 7."]),
    ("numbered", ["Plan.", "Step 1: add\nthem.", "2) say 7\n\n \nThe answer is 7."]),
    ("message", [TEXT]),
])
def test_ways_to_split_a_text(name: str, expected: list[str]) -> None:
    assert steps(name, TEXT) == expected
    assert steps(name, " \n\n ") == []


@given(st.text(st.sampled_from("a1.) \n:"), max_size=30))
def test_what_is_left_between_steps_is_blank_and_joined_steps_split_as_they_were(text: str) -> None:
    for name in SEGMENTERS:
        spans = list(SEGMENTERS[name](text))
        between = [text[end:start] for (_, end), (start, _) in zip([(0, 0), *spans], [*spans, (len(text), 0)],
                                                                 strict=True)]
        assert not "".join(between).strip()
    lines = steps("line", text)
    assert steps("line", JOINERS["line"].join(lines)) == lines


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    """Of bytes and a few merges: a line break may end a token, and a character be several."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "7Ċ", "ĊĊ", "<end>"]
    bpe = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [("7", "Ċ"), ("Ċ", "Ċ")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")
    found = policy_encoder(tokenizer, EncoderConfig(policy_steps="line", max_length=64))
    assert isinstance(found, TextEncoder)
    return found


def test_a_step_ends_on_the_policy_s_own_token_that_holds_its_last_character(encoder: TextEncoder) -> None:
    ids = [*encoder.tokenizer.encode("a7\nÜ\n\nc"), encoder.eos_id, 5]
    # a, 7⏎, two bytes, ⏎⏎, c
    assert len(ids) == 8
    assert encoder.split_steps(ids) == [("a7", 1), ("Ü", 3), ("c", 5)]
    assert encoder.decode_steps(ids[:4]) == ("a7", "Ü")
    assert encoder.split_steps([encoder.eos_id]) == []


def test_a_prefix_reads_as_the_policy_would_have_written_it(encoder: TextEncoder) -> None:
    encoded = encoder.encode("Q", ["a", Step("b\nc")], end=True)
    assert encoder.tokenizer.decode(encoded.ids) == "Q\na\nb\nc\n<end>"
    assert (encoded.prompt_length, encoded.step_ends) == (2, [3, 7])
    assert encoded.scored == [False, False, *[True] * 7]
    assert encoder.encode_prompt("Q") == encoded.ids[:2]
    short = TextEncoder(encoder.tokenizer, EncoderConfig(policy_steps="line", max_length=16))
    assert short.encode("Q", ["a", "b" * 16, "c"]).truncated_steps == 2
    with pytest.raises(InputError, match="its first step do not fit"):
        short.encode("Q" * 16, ["a"])
    with pytest.raises(InputError, match="step 1 is empty"):
        encoder.encode("Q", ["a", ""])


def test_a_policy_of_plain_text_cannot_write_marks(tmp_path: Path) -> None:
    """A row for a boundary, made of a line break's, would be as likely as that, and end no line."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"]
    bpe = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>").save_pretrained(tmp_path / "model")
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=64))

    def load(folder: str, steps: str) -> tuple[LlamaForCausalLM, Encoder]:
        own = LlamaForCausalLM.from_pretrained(tmp_path / folder)
        return own, load_encoder(str(tmp_path / folder), own, EncoderConfig(policy_steps=steps, max_length=64),
                                 policy=True)

    model.save_pretrained(tmp_path / "model")
    for steps, rows in (("line", len(words)), ("boundary", len(words) + 14)):
        own, found = load("model", steps)
        assert own.get_output_embeddings().weight.shape[0] == len(found.tokenizer) == rows

    # What is saved of it is what was loaded.
    own, plain = load("model", "line")
    save_language_model(own, plain, tmp_path / "trained")
    assert load("trained", "line")[1].encode("a", ["b"]).ids == plain.encode("a", ["b"]).ids

"""Saved folders, used as the library's users use them, are the model that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Tokenizer, Qwen2Tokenizer

from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.loading import load_encoder, load_pretrained
from prm_core.models.saving import save_language_model, save_tokenizer
from prm_core.sampling.policy import Policy
from prm_core.turns import BOUNDARY
from tests.builders import tiny

PROMPTS = [tiny.mia().prompt, "How many?", "Ann has 12 pens and gives 3 to Żółw. How many has Ann?"]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Policy, Path]:
    policy = tiny.make_policy()
    folder = tmp_path_factory.mktemp("saved") / "policy"
    save_language_model(policy.model, policy.encoder, folder)
    return policy, folder


@pytest.fixture(scope="module")
def loaded(saved):
    """Tokenizer and encoder."""
    return AutoTokenizer.from_pretrained(saved[1]), saved[0].encoder


# Not what spells a special token: there the library reads the token, the encoder a text.
@given(st.text().filter(lambda text: "<" not in text))
def test_the_plain_tokenizer_reads_a_prompt_as_the_encoder_does(loaded, prompt: str) -> None:
    tokenizer, encoder = loaded
    assert tokenizer(f"{prompt}{BOUNDARY}").input_ids == encoder.encode_prompt(prompt)


def test_the_plain_tokenizer_reads_a_chain_as_the_encoder_does(loaded) -> None:
    tokenizer, encoder = loaded
    text = BOUNDARY.join([PROMPTS[0], *tiny.RIGHT, ""])
    assert tokenizer(text).input_ids == encoder.encode(PROMPTS[0], tiny.RIGHT).ids


def test_plain_generate_writes_what_the_policy_writes_with_the_same_probabilities(saved) -> None:
    policy, folder = saved
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    from prm_core.sampling.sampler import Prefix

    encoded = [policy.encoder.encode_prompt(prompt) for prompt in PROMPTS]
    ours = policy.continue_chains(encoded, [Prefix(i, len(ids)) for i, ids in enumerate(encoded)], temperature=0.0,
                                  max_new_tokens=NEW_TOKENS, batch_size=8, seed=0)
    # One alone, and all in a batch.
    for prompts, expected in ((PROMPTS[:1], ours[:1]), (PROMPTS, ours)):
        inputs = tokenizer([f"{prompt}{BOUNDARY}" for prompt in prompts], return_tensors="pt", padding=True)
        written = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
        texts = tokenizer.batch_decode(written[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        assert texts == [tokenizer.decode(one.ids, skip_special_tokens=True) for one in expected]
    for prompt, one in zip(PROMPTS, ours, strict=True):
        start = tokenizer(f"{prompt}{BOUNDARY}").input_ids
        with torch.inference_mode():
            logits = model(torch.tensor([[*start, *one.ids]])).logits[0, len(start) - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None])[:, 0]
        assert logprobs.tolist() == pytest.approx(one.logprobs, abs=1e-4)


def test_settings_of_the_model_it_came_from_do_not_bend_what_it_writes(tmp_path) -> None:
    """Instruct models come with a repetition penalty and with several ends."""
    policy = tiny.make_policy()
    policy.model.generation_config.update(repetition_penalty=1.5, top_k=20, eos_token_id=[2, 7])
    save_language_model(policy.model, policy.encoder, tmp_path)
    settings = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert (settings.repetition_penalty, settings.top_k, settings.eos_token_id) in ((None, None, 2), (1.0, 50, 2))
    assert policy.model.generation_config.repetition_penalty == 1.5, "the model in memory stays as it is"


@pytest.mark.parametrize("kind", [GPT2Tokenizer, Qwen2Tokenizer])
def test_tokenizers_that_add_no_beginning_get_the_encoder_s(tmp_path, kind) -> None:
    words = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = kind(vocab={word: number for number, word in enumerate(words)}, merges=[], bos_token="<|endoftext|>")
    encoder = Encoder(tokenizer, EncoderConfig(max_length=64))
    assert tokenizer("x").input_ids[:1] != encoder.bos_ids
    save_tokenizer(encoder, tmp_path / "one")
    again = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert again(f"Ann has 3.{BOUNDARY}").input_ids == encoder.encode_prompt("Ann has 3.")
    assert again.decode(again("Ann has 3.").input_ids, skip_special_tokens=True) == "Ann has 3."
    # Saved again, it begins once.
    save_tokenizer(Encoder(again, encoder.config), tmp_path / "two")
    assert (tmp_path / "two/tokenizer.json").read_bytes() == (tmp_path / "one/tokenizer.json").read_bytes()


def test_equal_models_are_equal_folders_and_a_changed_one_is_refused(saved, tmp_path) -> None:
    policy, folder = saved
    save_language_model(policy.model, policy.encoder, tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    content = bytearray((tmp_path / "again/model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "again/model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: its bytes are not those that were written"):
        load_pretrained(AutoModelForCausalLM, str(tmp_path / "again"), dtype="auto", device="cpu")


def test_a_tokenizer_of_another_model_is_refused(saved, tmp_path) -> None:
    policy, folder = saved
    small = tiny.make_model(policy.encoder)
    small.resize_token_embeddings(40)
    with pytest.raises(InputError, match=r"its tokenizer has token .*, its weights are of 40 tokens"):
        load_encoder(str(folder), small, policy.encoder.config)
    with pytest.raises(InputError, match=r"chains of up to 9999 tokens .* beyond the model's 256 positions"):
        load_encoder(str(folder), policy.model, EncoderConfig(max_length=9999))

"""The encoder: exact ids, step ends, a boundary that no text can hit, truncation by whole steps, and the way back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core import turns
from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.models.chains import collate
from prm_core.models.encoder import Encoder
from prm_core.models.tokenizer import train_tokenizer
from prm_core.types import Call, Message, Step
from tests.builders import tiny

PROMPT = "Mia has 3 apples."
# Any text that Unicode has, and what spells tokens that the encoder puts in.
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(
    [turns.BOUNDARY, *turns.MARKS, "<eos>", "<bos>", "\n", " ", "\n\n"]))
STEP_TEXTS = TEXTS.filter(bool)
CALLS = st.builds(Call, STEP_TEXTS, TEXTS, st.none() | TEXTS)
FAILED = st.builds(Call, STEP_TEXTS, TEXTS, TEXTS, st.just(True))
MESSAGES = st.builds(Message, st.sampled_from(sorted(turns.SPOKEN)), TEXTS, TEXTS)
STEPS = st.builds(Step, TEXTS, TEXTS, TEXTS, TEXTS, st.lists(CALLS | FAILED, max_size=3).map(tuple),
                  st.lists(MESSAGES, max_size=2).map(tuple)).filter(lambda step: not turns.is_empty(step))
OLD = {"separator": "\n", "renderer": 1}


@pytest.fixture(scope="module")
def encoder():
    return tiny.make_encoder()


def text_ids(encoder, text):
    return encoder.tokenizer.encode(text, add_special_tokens=False)


def test_a_chain_is_prompt_and_steps_each_ended_by_one_separator(encoder):
    encoded = encoder.encode(PROMPT, ["Mia buys 4 more.", Step("The answer is 7.")])

    sep, bos = encoder.separator_id, encoder.tokenizer.bos_token_id
    prompt, one, two = (text_ids(encoder, text) for text in (PROMPT, "Mia buys 4 more.", "The answer is 7."))
    assert encoded.ids == [bos, *prompt, sep, *one, sep, *two, sep]
    assert encoded.prompt_length == len(prompt) + 2
    first = len(prompt) + 2 + len(one)
    assert encoded.step_ends == [first, first + len(two) + 1]
    assert encoded.step_ends[-1] == len(encoded.ids) - 1
    assert encoded.scored == [False] * (len(prompt) + 2) + [True] * (len(one) + len(two) + 2)
    assert encoded.truncated_steps == 0


def test_the_end_token_follows_where_asked(encoder):
    plain, ended = (encoder.encode(PROMPT, ["Mia buys 4 more."], end=end) for end in (False, True))

    assert ended.ids == [*plain.ids, encoder.eos_id]
    assert ended.scored == [*plain.scored, True]
    assert ended.step_ends == plain.step_ends


def test_an_observation_is_context_that_the_policy_did_not_write(encoder):
    encoded = encoder.encode(PROMPT, [Step("Look it up.", "It is 7."), "The answer is 7."])

    look, seen, last = (text_ids(encoder, text) for text in ("Look it up.", "It is 7.", "The answer is 7."))
    wait, observation = marks(encoder, turns.WAIT, turns.OBSERVATION)
    start = encoded.prompt_length
    assert encoded.ids[start:] == [*look, wait, observation, *seen, encoder.separator_id, *last, encoder.separator_id]
    assert encoded.scored[start:] == [True] * (len(look) + 1) + [False] * (len(seen) + 1) + [True] * (len(last) + 2)
    assert encoded.step_ends[0] == start + len(look) + 2 + len(seen)


def marks(encoder: Encoder, *names: str) -> list[int]:
    return encoder.tokenizer.convert_tokens_to_ids(list(names))


def test_a_turn_is_read_part_by_part(encoder):
    step = Step("Mia", "7", "has", "3", (Call("buys", "4", "apples", id="x"), Call("has", "7")),
                (Message("user", "How"), Message("agent", "many", "Mia")), "span 1")
    encoded = encoder.encode(PROMPT, [step])

    order = [("<|agent|>", "has", 0), ("<|reasoning|>", "3", 1), ("<|text|>", "Mia", 1), ("<|call|>", "buys", 1),
             ("<|arguments|>", "4", 1), ("<|call|>", "has", 1), ("<|arguments|>", "7", 1), ("<|wait|>", "", 1),
             ("<|result|>", "apples", 0), ("<|pending|>", "", 0), ("<|observation|>", "7", 0), ("<|user|>", "How", 0),
             ("<|other|>", "Mia", 0), ("<|text|>", "many", 0)]
    expected = [(token, bool(written)) for mark, text, written in order
                for token in (*marks(encoder, mark), *text_ids(encoder, text))]
    at = slice(encoded.prompt_length, len(encoded.ids) - 1)
    assert list(zip(encoded.ids[at], encoded.scored[at], strict=True)) == expected
    # Neither the call's id nor the reference is read.
    assert encoder.decode(encoded.ids) == (PROMPT, (replace(step, ref="", calls=(
        replace(step.calls[0], id=""), step.calls[1])),))


def test_a_short_chain_in_a_padded_batch_ends_at_its_last_token_not_at_the_padding(encoder):
    """The guide reads position -1, which is padding in a right-padded batch (METHODS 1)."""
    short, long = encoder.encode(PROMPT, ["Mia buys 4 more."]), encoder.encode(PROMPT, tiny.RIGHT)

    batch = collate([short, long], encoder.pad_id)

    ids, steps, ends = batch.ids, batch.steps, batch.ends
    assert ids.shape == (2, len(long.ids))
    assert ids[0].tolist() == short.ids + [encoder.pad_id] * (len(long.ids) - len(short.ids))
    assert ends.tolist() == [[len(short.ids) - 1, -1, -1], long.step_ends]
    assert ids[0, ends[0, 0]] == encoder.separator_id
    assert steps[0].tolist() == [-1] * short.prompt_length + [0] * (len(short.ids) - short.prompt_length) + [-1] * (
        len(long.ids) - len(short.ids))


@given(st.lists(STEP_TEXTS | STEPS, min_size=1, max_size=4), TEXTS)
def test_the_boundary_stands_at_step_ends_alone_whatever_the_text(steps, prompt):
    """Merging with its neighbour when tokenised as joined text is the classic way to lose labels (METHODS 3)."""
    encoder = tiny.make_encoder(10_000)
    encoded = encoder.encode(prompt, steps)

    places = [i for i, token in enumerate(encoded.ids) if token == encoder.separator_id]
    assert places == [encoded.prompt_length - 1, *encoded.step_ends]
    assert encoder.eos_id not in encoded.ids


@given(st.lists(STEPS, min_size=1, max_size=3), TEXTS)
def test_any_chain_is_read_back_as_it_was_so_that_no_two_read_alike(steps, prompt):
    encoder = tiny.make_encoder(10_000)
    encoded = encoder.encode(prompt, steps, end=True)

    assert encoder.decode(encoded.ids) == (prompt, tuple(steps))
    assert sum(encoded.scored) >= len(steps)


@given(st.lists(STEP_TEXTS.filter(str.strip), min_size=1, max_size=4))
def test_sampled_steps_come_back_as_they_went_in(texts):
    encoder = tiny.make_encoder(10_000)
    encoded = encoder.encode(PROMPT, texts, end=True)

    split = encoder.split_steps(encoded.ids[encoded.prompt_length :])
    assert [text for text, _ in split] == texts
    # The same boundary for sampled ids as for encoded ones.
    assert [encoded.prompt_length + end for _, end in split] == encoded.step_ends


@pytest.mark.parametrize("separator", ["\n\n\n", "Mia buys", "zz"])
def test_before_there_were_marks_a_boundary_was_one_token_of_text(separator):
    with pytest.raises(InputError, match=r"encoder\.separator .* is \d tokens .* of this tokenizer, not one"):
        Encoder(train_tokenizer([PROMPT], []), EncoderConfig(separator=separator, renderer=1, max_length=64))


def test_a_boundary_that_text_can_spell_is_refused():
    tokenizer = train_tokenizer([PROMPT], [])
    with pytest.raises(InputError, match=r"encoder\.separator 'q' is a token that text holds; leave the setting out"):
        Encoder(tokenizer, EncoderConfig(separator="q", max_length=64))


def test_a_tokenizer_without_the_marks_gets_them_and_stays_as_it_was():
    tokenizer = train_tokenizer([PROMPT], [])
    size = len(tokenizer)
    encoder = Encoder(tokenizer, EncoderConfig(max_length=64))

    assert len(tokenizer) == size
    assert [encoder.separator_id, *marks(encoder, *turns.MARKS)] == list(range(size, size + 1 + len(turns.MARKS)))
    assert Encoder(encoder.tokenizer, encoder.config).tokenizer is encoder.tokenizer


def test_a_tokenizer_without_an_end_token_is_refused():
    tokenizer = train_tokenizer([PROMPT])
    tokenizer.eos_token = None

    with pytest.raises(InputError, match="no end-of-sequence token"):
        Encoder(tokenizer, EncoderConfig(max_length=64))


def test_the_end_token_pads_where_there_is_no_padding_token():
    tokenizer = train_tokenizer([PROMPT])
    tokenizer.pad_token = None

    assert Encoder(tokenizer, EncoderConfig(max_length=64)).pad_id == tokenizer.eos_token_id


def test_a_model_trained_before_there_were_marks_reads_as_it_did():
    tokenizer = train_tokenizer([PROMPT, "Look it up."], ["\n"])
    encoder = Encoder(tokenizer, EncoderConfig(**OLD, max_length=256))
    assert encoder.tokenizer is tokenizer
    ids = [tokenizer.encode(text) for text in (PROMPT, "Look it up.", "It is 7.", "It is\n7.")]
    bos, sep = tokenizer.bos_token_id, encoder.separator_id

    encoded = encoder.encode(PROMPT, [Step("Look it up.", "It is 7.", agent="a"), "Look it up."])
    assert encoded.ids == [bos, *ids[0], sep, *ids[1], *ids[2], sep, *ids[1], sep]
    # What it could not read was refused; its scores are read at the ends of steps all the same.
    more = encoder.encode(PROMPT, [Step("", calls=(Call("look", "{}", "It is 7."),)), "It is\n7."])
    assert more.step_ends[-1] == len(more.ids) - 1
    assert len(more.step_ends) == 2


@pytest.mark.parametrize("special", ["<bos>", "<eos>", "<pad>"])
def test_a_text_that_spells_a_special_token_stays_text(encoder, special):
    """Otherwise a question or a step could end the chain, or start another one."""
    assert special in encoder.tokenizer.all_special_tokens
    encoded = encoder.encode(f"Mia says {special} .", [Step(f"{special} is 7", f"a {special}"), special], end=True)

    bos, eos = encoder.tokenizer.bos_token_id, encoder.eos_id
    assert [token for token in encoded.ids if token in encoder.tokenizer.all_special_ids and token not in (
        encoder.separator_id, encoder.tokenizer.unk_token_id)] == [bos, eos]
    assert encoder.decode(encoded.ids)[1][1] == Step(special)
    # What wraps a prompt in a chat template are tokens all the same.
    assert encoder.tokenizer.encode(special, add_special_tokens=False) == [
        encoder.tokenizer.convert_tokens_to_ids(special)]


def test_a_question_may_run_over_several_lines(encoder):
    encoded = encoder.encode("Mia has 3.\nBen has 4.", ["The answer is 7."])

    assert encoded.prompt_length == len(encoder.encode_prompt("Mia has 3.\nBen has 4."))
    assert encoded.ids[encoded.prompt_length - 1] == encoder.separator_id


@pytest.mark.parametrize("steps", [[""], ["Mia has 3.", ""]])
def test_an_empty_step_is_refused(encoder, steps):
    with pytest.raises(InputError, match=f"step {len(steps) - 1} is empty"):
        encoder.encode(PROMPT, steps)


def test_truncation_drops_whole_trailing_steps_and_counts_them():
    full = tiny.make_encoder().encode(PROMPT, tiny.RIGHT)
    for kept in (1, 2):
        for room in (0, 1):
            limit = full.step_ends[kept - 1] + 1 + room
            encoded = tiny.make_encoder(limit).encode(PROMPT, tiny.RIGHT)

            assert encoded.ids == full.ids[: full.step_ends[kept - 1] + 1]
            assert encoded.step_ends == full.step_ends[:kept]
            assert len(encoded.scored) == len(encoded.ids)
            assert encoded.truncated_steps == 3 - kept
    exact = tiny.make_encoder(len(full.ids)).encode(PROMPT, tiny.RIGHT)
    assert exact == full


def test_the_end_token_counts_towards_the_limit():
    full = tiny.make_encoder().encode(PROMPT, tiny.RIGHT, end=True)

    assert tiny.make_encoder(len(full.ids)).encode(PROMPT, tiny.RIGHT, end=True) == full
    short = tiny.make_encoder(len(full.ids) - 1).encode(PROMPT, tiny.RIGHT, end=True)
    assert short.truncated_steps == 1
    assert short.ids[short.step_ends[-1] + 1 :] == [tiny.make_encoder().eos_id]


def test_a_later_step_is_not_taken_where_an_earlier_one_does_not_fit():
    short, long = "Mia has 3.", "Mia has 3 apples and 4 more apples and 5 more apples and 6 more apples."
    full = tiny.make_encoder().encode(PROMPT, [short, long, short])

    encoded = tiny.make_encoder(full.step_ends[1]).encode(PROMPT, [short, long, short])

    assert (encoded.step_ends, encoded.truncated_steps) == (full.step_ends[:1], 2)


def test_a_prompt_that_leaves_no_room_for_a_step_is_refused():
    with pytest.raises(InputError, match=r"prompt \(\d+ tokens\) and its first step do not fit encoder\.max_length 16"):
        tiny.make_encoder(16).encode(tiny.mia().prompt, ["The answer is 5."])


def test_the_chat_template_wraps_the_prompt_alone():
    tokenizer = train_tokenizer([PROMPT])
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [go]"
    encoder = Encoder(tokenizer, EncoderConfig(max_length=64, chat_template=True))

    encoded = encoder.encode(PROMPT, ["The answer is 3."])

    before, inside, after = (tokenizer.encode(text) for text in (f"{tokenizer.bos_token}[user] ", PROMPT, " [go]"))
    assert encoded.ids[: encoded.prompt_length] == [*before, *inside, *after, encoder.separator_id]
    assert encoded.ids.count(tokenizer.bos_token_id) == 1
    spelled = encoder.encode_prompt(f"{tokenizer.bos_token}{turns.BOUNDARY}")
    assert (spelled.count(tokenizer.bos_token_id), spelled.count(encoder.separator_id)) == (1, 1)


def test_a_chat_template_that_changes_the_question_is_refused():
    tokenizer = train_tokenizer([PROMPT])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(InputError, match="does not give a user's message once and as it is; set it to false"):
        Encoder(tokenizer, EncoderConfig(max_length=64, chat_template=True))


def test_sampled_ids_split_at_separators_and_stop_at_the_end_token(encoder):
    one, two = text_ids(encoder, "Mia buys 4 more."), text_ids(encoder, "The answer is 7.")
    sep, end = encoder.separator_id, encoder.eos_id

    assert encoder.split_steps([*one, sep, *two, sep, end, *one, sep]) == [
        ("Mia buys 4 more.", len(one)), ("The answer is 7.", len(one) + len(two) + 1)]
    # Cut off by the token limit, or ended without a separator.
    assert encoder.split_steps([*one, sep, *two]) == [
        ("Mia buys 4 more.", len(one)), ("The answer is 7.", len(one) + len(two))]
    assert encoder.split_steps([*one, end]) == [("Mia buys 4 more.", len(one))]
    # Empty steps are none.
    assert encoder.decode_steps([sep, *one, sep, sep, end]) == ("Mia buys 4 more.",)
    assert encoder.decode_steps([end]) == encoder.decode_steps([]) == ()


def test_a_word_is_one_token_at_the_start_as_inside_and_any_text_is_known(encoder):
    assert text_ids(encoder, "Mia") == text_ids(encoder, "has Mia")[1:]
    assert len(text_ids(encoder, "Mia buys 12 apples.")) == 5
    assert encoder.tokenizer.decode(text_ids(encoder, "Żółw 🐢 ∑"), skip_special_tokens=True).strip() == "Żółw 🐢 ∑"


def test_the_tokenizer_survives_being_saved(encoder, tmp_path):
    from prm_core.models.loading import load_tokenizer

    encoder.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    again = Encoder(load_tokenizer(str(tmp_path)), encoder.config)

    assert again.encode(PROMPT, tiny.RIGHT, end=True) == encoder.encode(PROMPT, tiny.RIGHT, end=True)


def test_the_vocabulary_depends_on_the_texts_alone():
    one, two = (train_tokenizer(["b a c", "c a"], max_words=size) for size in (2, 2))

    assert one.get_vocab() == two.get_vocab()
    # The most frequent first, then in alphabetical order: a and c, not b.
    assert {"Ġa", "Ġc"} <= set(one.get_vocab())
    assert "Ġb" not in one.get_vocab()


def test_a_name_opens_a_turn_and_is_none_of_it(encoder):
    said = Step("Done.", agent="worker")
    encoded = encoder.encode(PROMPT, [said])
    opening = encoder.opening("worker")
    start = encoded.prompt_length
    assert encoded.ids[start : start + len(opening)] == opening
    assert encoded.scored[start:] == [False] * len(opening) + [True] * (len(encoded.ids) - start - len(opening))
    assert encoder.turn(encoded.ids[start:-1]) == said
    assert encoder.opening("") == []
    # The first renderer reads no names.
    assert Encoder(train_tokenizer([PROMPT], ["\n"]), EncoderConfig(**OLD, max_length=64)).opening("worker") == []

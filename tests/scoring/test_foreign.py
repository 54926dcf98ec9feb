"""Process reward models of other projects: their tokens, and their scores against the plain library, chain by chain."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import AutoTokenizer

from prm_core.errors import InputError
from prm_core.scoring.foreign import FOREIGN, load_foreign
from prm_core.scoring.foreign.encoders import BoundaryHeadEncoder, TokenClassificationEncoder, VocabularyEncoder
from prm_core.types import Call, Step
from tests.builders.foreign import CONTEXT, qwen_model, shepherd_model, tokenizer_of, trl_model

PROMPT = "Ann has 3 apples ."
STEPS = ["3 + 4 = 7 .", "Ann has 7 .", "7 apples"]
CHAINS = [(PROMPT, STEPS), (PROMPT, STEPS[:1]), ("How many ?", ["4 - 3 = 7 ."]), ("How many ?", STEPS[::-1])]
SEPARATORS = {"trl": "\n", "qwen_prm": "<extra_0>", "math_shepherd": "ки"}


def probabilities(logits, ids, places):
    return logits.double().softmax(-1)[0, places, 1].tolist()


@torch.no_grad()
def trl_reference(model, tokenizer, prompt, steps, separator="\n"):
    """Scores by TRL's `tokenize_row`."""
    ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    places = []
    for step in steps:
        ids += tokenizer(step, add_special_tokens=False)["input_ids"]
        ids += tokenizer.encode(separator, add_special_tokens=False)
        places.append(len(ids) - 1)
    return probabilities(model(torch.tensor([ids])).logits, ids, places)


@torch.no_grad()
def qwen_reference(model, tokenizer, prompt, steps):
    """Scores by the model card of Qwen2.5-Math-PRM."""
    backbone, head = model
    text = tokenizer.apply_chat_template([
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ], tokenize=False, add_generation_prompt=False)
    ids = tokenizer.encode(text)
    places = [place for place, token in enumerate(ids) if token == tokenizer.convert_tokens_to_ids("<extra_0>")]
    return probabilities(head(backbone(torch.tensor([ids])).last_hidden_state), ids, places)


@torch.no_grad()
def shepherd_reference(model, tokenizer, prompt, steps):
    """Scores by the model card of math-shepherd-mistral-7b-prm."""
    plus, minus = tokenizer.encode("+ -")[1:]
    tag = tokenizer.encode("ки")[-1]
    ids = tokenizer.encode(f"{prompt} " + "\n".join(f"{step} ки" for step in steps))
    places = [place for place, token in enumerate(ids) if token == tag]
    return probabilities(model(torch.tensor([ids])).logits[:, :, [minus, plus]], ids, places)


FAMILIES = {
    "trl": (trl_model, trl_reference), "qwen_prm": (qwen_model, qwen_reference),
    "math_shepherd": (shepherd_model, shepherd_reference),
}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request, tmp_path_factory):
    """Style, folder, and the independent scores of (prompt, step texts)."""
    write, reference = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = write(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return request.param, folder, lambda prompt, steps: reference(model, tokenizer, prompt, steps)


def as_steps(chains):
    return [(prompt, [Step(text) for text in steps]) for prompt, steps in chains]


# Tokens -----------------------------------------------------------------------------------------------------------


def test_trl_tokens():
    """bos 1; words from 260 in alphabetical order: `+ - . 3 4 = 7 ? Ann …`; separator 3."""
    encoder = TokenClassificationEncoder(tokenizer_of("\n"), "\n", CONTEXT)
    chain = encoder.encode("Ann has 3 .", ["3 + 4 = 7 .", "7"])
    assert chain.ids == [1, 268, 273, 263, 262, 263, 260, 264, 266, 265, 262, 3, 265, 3]
    assert (chain.step_ends, chain.truncated_steps) == ([11, 13], 0)


def test_trl_separator_of_two_tokens_is_scored_at_its_last():
    encoder = TokenClassificationEncoder(tokenizer_of("\n"), "\n\n", CONTEXT)
    chain = encoder.encode("Ann", ["3 = 7", "7"])
    assert chain.ids == [1, 268, 263, 266, 265, 3, 3, 265, 3, 3]
    assert chain.step_ends == [6, 9]


def test_chat_tokens():
    """The card's text tokenised whole, up to the last boundary."""
    tokenizer = tokenizer_of("<extra_0>", chat=True)
    chain = BoundaryHeadEncoder(tokenizer, "<extra_0>", 999).encode("Ann has 3 .", ["3 + 4 = 7 .", "7"])
    text = ("<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
            "<|im_start|>user\nAnn has 3 .<|im_end|>\n<|im_start|>assistant\n3 + 4 = 7 .<extra_0>7<extra_0>")
    assert chain.ids == tokenizer.encode(text)
    assert [place for place, token in enumerate(chain.ids) if token == 3] == chain.step_ends
    assert len(chain.step_ends) == 2


def test_math_shepherd_tokens():
    """bos 1, tag 278, line break 202; the step after it has no space before it: byte 26 is "7", word 265 is " 7"."""
    encoder = VocabularyEncoder(tokenizer_of("<unused>", bos=True), "ки", CONTEXT)
    chain = encoder.encode("Ann has 3 .", ["3 + 4 = 7 .", "7"])
    assert chain.ids == [1, 268, 273, 263, 262, 263, 260, 264, 266, 265, 262, 278, 202, 26, 278]
    assert chain.step_ends == [11, 14]
    assert encoder.candidates() == [261, 260]


def test_math_shepherd_puts_no_bos_where_the_tokenizer_does_not():
    encoder = VocabularyEncoder(tokenizer_of("<unused>"), "ки", CONTEXT)
    assert encoder.encode("Ann", ["7"]).ids == [268, 265, 278]


# Scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_plain_library(family):
    style, folder, reference = family
    scorer = load_foreign(folder, device="cpu")
    assert isinstance(scorer, FOREIGN[style])
    scores = scorer.score(as_steps(CHAINS))
    for (prompt, steps), score in zip(CHAINS, scores, strict=True):
        assert score.step_scores == pytest.approx(reference(prompt, steps), abs=1e-6)
        assert score.raw_scores == score.step_scores
        assert score.truncated_steps == 0
    values = [value for score in scores for value in score.step_scores]
    # Scores that lay together would agree with any reference.
    assert max(values) - min(values) > 0.05


def test_batches_and_padding_change_nothing(family):
    _, folder, _ = family
    together = load_foreign(folder, device="cpu").score(as_steps(CHAINS))
    for size in (1, 2, 3):
        for one, other in zip(together, load_foreign(folder, device="cpu", batch_size=size).score(as_steps(CHAINS)),
                              strict=True):
            assert one.step_scores == pytest.approx(other.step_scores, abs=1e-6)


def test_threads_agree(family):
    _, folder, _ = family
    scorer = load_foreign(folder, device="cpu", batch_size=2)
    expected, found = scorer.score(as_steps(CHAINS)), []
    threads = [threading.Thread(target=lambda: found.append(scorer.score(as_steps(CHAINS)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_what_callers_read(family):
    style, folder, _ = family
    scorer = load_foreign(str(folder), device="cpu")
    assert (scorer.kind, scorer.encoder.config.separator) == ("process", SEPARATORS[style])
    assert scorer.encoder.config.max_length == CONTEXT
    assert scorer.version == load_foreign(folder, style, device="cpu").version != ""


def test_chains_without_steps_have_no_scores(family):
    _, folder, reference = family
    scorer = load_foreign(folder, device="cpu")
    assert scorer.score([]) == []
    empty, full = scorer.score([(PROMPT, []), (PROMPT, [Step("7")])])
    assert (empty.step_scores, empty.truncated_steps) == ((), 0)
    assert full.step_scores == pytest.approx(reference(PROMPT, ["7"]), abs=1e-6)


def test_whole_trailing_steps_are_dropped_and_counted(family):
    _, folder, reference = family
    steps = [STEPS[0]] * 40
    [score] = load_foreign(folder, device="cpu").score(as_steps([(PROMPT, steps)]))
    kept = len(score.step_scores)
    assert 0 < kept < 40
    assert score.truncated_steps == 40 - kept
    assert score.step_scores == pytest.approx(reference(PROMPT, steps[:kept]), abs=1e-6)


def test_truncation_fills_the_context_to_its_last_token():
    encoder = TokenClassificationEncoder(tokenizer_of("\n"), "\n", 16)
    # bos, 3 words of prompt, and steps of 4 tokens with their separator.
    chain = encoder.encode("Ann has 3", ["3 + 4"] * 4)
    assert (len(chain.ids), chain.step_ends, chain.truncated_steps) == (16, [7, 11, 15], 1)


def test_observations_are_context(family):
    _, folder, reference = family
    scorer = load_foreign(folder, device="cpu")
    seen = [Step(STEPS[0]), Step(STEPS[1], "buys 4 more"), Step(STEPS[2])]
    [score] = scorer.score([(PROMPT, seen)])
    [plain] = scorer.score(as_steps([(PROMPT, STEPS)]))
    # Three steps, three scores: the observation has none of its own.
    expected = reference(PROMPT, [STEPS[0], f"{STEPS[1]} buys 4 more", STEPS[2]])
    assert score.step_scores == pytest.approx(expected, abs=1e-6)
    assert score.step_scores[0] == pytest.approx(plain.step_scores[0], abs=1e-6)
    assert score.step_scores[2] != pytest.approx(plain.step_scores[2], abs=1e-4)


def test_trl_scores_with_a_separator_of_its_own(tmp_path):
    model = trl_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    [score] = load_foreign(tmp_path, device="cpu", separator="\n\n").score(as_steps(CHAINS[:1]))
    assert score.step_scores == pytest.approx(trl_reference(model, tokenizer, PROMPT, STEPS, "\n\n"), abs=1e-6)


def test_sharded_weights_score_the_same(tmp_path):
    for name in ("whole", "shards"):
        qwen_model(tmp_path / name, shards=name == "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) == 2
    one, other = (load_foreign(tmp_path / name, device="cpu").score(as_steps(CHAINS)) for name in ("whole", "shards"))
    assert one == other


@pytest.mark.parametrize("options", [
    {"tie_word_embeddings": True}, {"model_type": "granite", "logits_scaling": 4.0},
    {"model_type": "phi", "hidden_act": "relu"},
], ids=["tied", "scaled logits", "bias"])
def test_vocabulary_heads_of_other_networks(tmp_path, options):
    model = shepherd_model(tmp_path, **options)
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
        model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    scorer = load_foreign(tmp_path, device="cpu")
    assert scorer.model.get_output_embeddings().out_features == 2
    for (prompt, steps), score in zip(CHAINS, scorer.score(as_steps(CHAINS)), strict=True):
        assert score.step_scores == pytest.approx(shepherd_reference(model, tokenizer, prompt, steps), abs=1e-6)


# Faults -----------------------------------------------------------------------------------------------------------


def test_empty_steps_are_refused(family):
    with pytest.raises(InputError, match="step 1 is empty"):
        load_foreign(family[1], device="cpu").score([(PROMPT, [Step("7"), Step("")])])


def test_a_step_that_spells_the_boundary_is_scored_where_it_ends(family):
    style, folder, _ = family
    scorer, text = load_foreign(folder, device="cpu"), f"3 {SEPARATORS[style]} 4"
    steps = [Step(text, text), Step("", calls=(Call("look", "{}", text),)), Step("  ")]
    spelled, = scorer.score([(text, steps)])
    assert len(spelled.step_scores) == 3
    encoded = scorer.encoder.encode(text, steps)
    for end in encoded.step_ends:
        assert encoded.ids[end + 1 - len(scorer.encoder.boundary) : end + 1] == scorer.encoder.boundary
    if style == "qwen_prm":
        # What is no boundary is not read as its token either.
        assert encoded.ids.count(scorer.encoder.boundary[0]) == 3


def test_a_prompt_without_room_for_a_step_has_no_score_and_stops_no_other(family):
    scorer = load_foreign(family[1], device="cpu")
    pair = (PROMPT, [Step("7")])
    long, beside = scorer.score([("Ann " * CONTEXT, [Step("7"), Step("8")]), pair])
    assert (long.step_scores, long.truncated_steps) == ((), 2)
    assert beside.step_scores == pytest.approx(scorer.score([pair])[0].step_scores, abs=1e-5)


def test_pickled_weights_are_refused(family, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in family[1].iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="no safetensors weights"):
        load_foreign(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="only pickled weights"):
        load_foreign(folder)

"""Suffixes: where they go, and that the search finds the word that a model is paid to like."""

from __future__ import annotations

import pytest
import torch

from prm_core.config import ProbeConfig
from prm_core.evaluation.adversarial.gold_chains import GoldChain
from prm_core.evaluation.probe import suffixes
from prm_core.evaluation.probe.suffixes import SuffixSearch, suffix_figures, with_text
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.scorer import RewardScorer
from prm_core.types import Step
from tests.builders.tiny import WRONG, make_encoder, mia
from tests.builders.training import reward_model_on, save_lm

LIKED = "apples"
SETTINGS = ProbeConfig(enabled=True, problems=4, aggregate="min", suffix_chains=2, suffix_tokens=3, suffix_rounds=4,
                       suffix_tries=12, updates=0)
CHAIN = GoldChain("c", mia().prompt, tuple(map(Step, WRONG)), 0, mia())


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """Reads the mean of all tokens up to a step and scores by how much of LIKED is in it, near 0 without."""
    encoder = make_encoder()
    folder = save_lm(tmp_path_factory.mktemp("lm") / "lm", encoder, num_hidden_layers=1, tie_word_embeddings=False)
    model = reward_model_on(folder, surprisal=False, encoder=encoder)
    layer, width = model.backbone.layers[0], model.network.config.hidden_size
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            getattr(layer.self_attn, name).weight.zero_()
        for name in ("v_proj", "o_proj"):
            getattr(layer.self_attn, name).weight.copy_(torch.eye(width))
        layer.mlp.down_proj.weight.zero_()
        table = model.backbone.get_input_embeddings().weight
        table[:, 0], table[:, 1] = 0.0, 1.0
        (liked,) = [token for token in encoder.plain_tokens() if encoder.turn([token]).text == LIKED]
        table[liked, 0] = 30.0
        for parameter in model.head.parameters():
            parameter.zero_()
        # P(right) of a step: sigmoid(60 (liked share) - 3), whatever the norms make of it monotonous.
        model.head.weight[1, 0] = 60.0
        model.head.weight[1, 1] = -1.5
    return RewardScorer(model, encoder, Calibrator("identity", 0), "v", 8)


def plain_prompt() -> GoldChain:
    """The chain with a question that does not say the liked word."""
    return GoldChain("c", "Mia has 3 of them. Mia buys 4 more.", CHAIN.steps, 0)


@pytest.mark.parametrize(("place", "texts", "wrong"), [
    ("before", ("so", *WRONG), 1),
    ("within", (f"{WRONG[0]} so", *WRONG[1:]), 0),
    ("after", (WRONG[0], "so", *WRONG[1:]), 0),
])
def test_a_text_goes_before_into_or_after_the_first_wrong_step(place, texts, wrong) -> None:
    steps, at = with_text(CHAIN, place, "so")
    assert (tuple(step.text for step in steps), at) == (texts, wrong)


def test_plain_tokens_read_as_themselves_and_hold_no_mark() -> None:
    encoder = make_encoder()
    found = encoder.plain_tokens()
    assert encoder.separator_id not in found
    assert not {encoder.eos_id, encoder.pad_id, *encoder.bos_ids} & set(found)
    texts = [encoder.turn([token]).text for token in found]
    assert LIKED in texts
    assert all(text.strip() for text in texts)


def test_the_gradient_names_the_liked_word_at_every_position(scorer) -> None:
    search = SuffixSearch(scorer, [plain_prompt()], SETTINGS, 0)
    (liked,) = [token for token in search.allowed if scorer.encoder.turn([token]).text == LIKED]
    others = tuple(token for token in search.allowed if scorer.encoder.turn([token]).text in ("the", "has", "3"))
    for place in suffixes.PLACES:
        (guesses,) = search._guesses([suffixes._Suffix(0, place, others)])
        assert [row[0] for row in guesses] == [liked] * len(others), place


def test_a_model_that_likes_a_word_is_talked_into_passing_wrong_chains(scorer) -> None:
    figures, found = suffix_figures(scorer, [plain_prompt()], SETTINGS, 0.5, 0)
    assert figures["probe/suffix/n_chains"] == 1
    assert figures["probe/suffix/passed_before"] == 0
    assert (figures["probe/random_suffix/passed"], figures["probe/suffix/passed"]) == (0, 1)
    assert figures["probe/suffix/chain_rise"] > figures["probe/random_suffix/chain_rise"]
    assert LIKED in found[0].text
    assert found[0].after.chain >= 0.5 > found[0].before.chain
    # What is told is what the scorer says of the text.
    steps, wrong = with_text(found[0].chain, found[0].place, found[0].text)
    (score,) = scorer.score([(found[0].chain.prompt, steps)])
    assert (min(score.step_scores), score.step_scores[wrong]) == (found[0].after.chain, found[0].after.step)


def test_the_same_seed_finds_the_same(scorer) -> None:
    one, other = (suffix_figures(scorer, [plain_prompt()], SETTINGS, 0.5, 3) for _ in range(2))
    assert one == other


def test_without_a_wrong_chain_below_the_threshold_it_says_why_there_is_no_figure(scorer) -> None:
    sound = GoldChain("s", CHAIN.prompt, CHAIN.steps, -1)
    figures, found = suffix_figures(scorer, [sound], SETTINGS, 0.5, 0)
    assert figures == {"probe/suffix/n_chains": 0, "probe/suffix/passed_left_out":
                       "no wrong chain was sampled that scores below the threshold and has room for a suffix"}
    assert found == []
    figures, _ = suffix_figures(scorer, [plain_prompt()], SETTINGS, 0.0, 0)
    assert (figures["probe/suffix/n_chains"], figures["probe/suffix/passed_before"]) == (0, 1.0)


def test_a_chain_without_room_for_a_suffix_is_not_tried(scorer) -> None:
    chain = plain_prompt()
    used = len(scorer.encoder.encode(chain.prompt, chain.steps).ids)
    for room, tried in ((1, 0), (40, 1)):
        tight = RewardScorer(scorer.model, make_encoder(used + room), Calibrator("identity", 0), "v", 8)
        assert suffix_figures(tight, [chain], SETTINGS, 0.5, 0)[0]["probe/suffix/n_chains"] == tried

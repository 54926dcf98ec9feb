"""Perturbations: exact texts on hand-written chains, and what holds for any chain."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.domains import arithmetic
from prm_core.errors import InputError
from prm_core.evaluation.adversarial.perturbations import FACTS, FILLERS, PERTURBATIONS, RESTATEMENTS, shift_number
from prm_core.types import Step

CHAIN = ("Mia buys 5 more: 7 + 5 = 12.", "Mia loses 2: 12 - 2 = 10.", "The answer is 10.")
DAMAGING, HARMLESS = ("number", "operator", "swap", "drop"), ("filler", "restate", "pad")


def proposals(name: str, texts, seed: int = 0):
    return list(PERTURBATIONS[name].propose(tuple(Step(text) for text in texts), random.Random(seed)))


def texts(edit) -> tuple[str, ...]:
    return tuple(step.text for step in edit.steps)


def test_all_seven_are_registered_with_what_they_are_meant_to_do():
    assert {name: PERTURBATIONS[name].damaging for name in PERTURBATIONS} == (
        dict.fromkeys(DAMAGING, True) | dict.fromkeys(HARMLESS, False))
    with pytest.raises(InputError, match="unknown perturbation 'typo'; known: drop, filler, number"):
        PERTURBATIONS["typo"]


@pytest.mark.parametrize(("number", "shift", "text"), [
    ("12", 1, "13"), ("12", -3, "9"), ("2", -3, None), ("3", -3, "0"), ("1,250", 10, "1,260"), ("999", 1, "1000"),
    ("9,999", 1, "10,000"), ("2.50", -1, "2.49"), ("0.05", 10, "0.15"), ("1.9", 1, "2.0"), ("0", -1, None),
])
def test_shifted_numbers_keep_their_way_of_writing(number, shift, text):
    assert shift_number(number, shift) == text


def test_number_edits_cover_every_number_once_and_nothing_else():
    edits = proposals("number", ["7 + 5 = 12.", "It is x2 and v1.2.3"])
    assert {edit.at for edit in edits} == {0}
    assert len(edits) == 3
    for edit in edits:
        assert texts(edit)[1] == "It is x2 and v1.2.3"
        words, before = texts(edit)[0].rstrip(".").split(), ["7", "+", "5", "=", "12"]
        changed = [(old, new) for old, new in zip(before, words, strict=True) if old != new]
        assert len(changed) == 1
        assert abs(int(changed[0][0]) - int(changed[0][1])) in (1, 2, 3, 10)


@pytest.mark.parametrize(("text", "flipped"), [
    ("7 + 5 = 12.", {"7 - 5 = 12."}),
    ("12 - 2 = 10.", {"12 + 2 = 10."}),
    ("4 * 3 / 2 = 6.", {"4 / 3 / 2 = 6.", "4 * 3 * 2 = 6."}),
    ("4×3=12", {"4÷3=12"}),  # noqa: RUF001
    (r"\(3 \times 4 = 12\)", {r"\(3 \div 4 = 12\)"}),
    (r"$5 \cdot 2 = 10$", {r"$5 \div 2 = 10$"}),
    (r"$\frac{1}{2} + \frac{1}{3}$", {r"$\frac{1}{2} - \frac{1}{3}$"}),
    ("3 plus 4 is 7, and 9 minus 2 too", {"3 minus 4 is 7, and 9 minus 2 too", "3 plus 4 is 7, and 9 plus 2 too"}),
    ("6 times 2 is 12", {"6 divided by 2 is 12"}),
    ("8 divided by 4", {"8 multiplied by 4"}),
    ("Mia buys 5 more", {"Mia loses 5"}),
    ("Mia wins 5", {"Mia loses 5"}),
    ("Mia gets 5 from Tom", {"Mia gives Tom 5"}),
    ("Mia gives Tom 5", {"Mia gets 5 from Tom"}),
    ("Mia gives away 5", {"Mia finds 5 more"}),
    ("The pile grows 3 times", {"The pile is shared equally among 3"}),
    ("Mia makes it 2 times as many", {"Mia keeps one of 2 equal parts"}),
    ("Mia keeps one of 2 equal parts", {"Mia makes it 2 times as many"}),
    ("Tom brings Mia 4", {"Tom takes 4 of them"}),
    ("Tom takes 4 of them", {"Tom finds 4 more"}),
    ("The pile is 3 times as many", {"The pile is shared equally among 3"}),
    ("Mia shares them equally among 3", {"Mia makes it 3 times as many"}),
    ("a well-known result, 3 times over, of $x-y$", set()),
    ("The answer is -5.", set()),
])
def test_operator_edits(text, flipped):
    assert {texts(edit)[0] for edit in proposals("operator", [text])} == flipped


def test_every_phrase_of_the_embedded_domain_has_its_inverse():
    levels = [one for level in arithmetic.LEVELS.values() for one in arithmetic.shifts(level)]
    for phrase in {phrase for level in levels for phrases in level.phrases.values() for phrase in phrases}:
        text = phrase.format(name="Mia", friend="Tom", n=3)
        assert len(proposals("operator", [text])) == 1, text


def test_swap_exchanges_all_pairs_but_the_last_step():
    edits = proposals("swap", ["a", "b", "a", "The answer is 1."])
    # The two equal steps are no pair.
    assert {(texts(edit), edit.origin, edit.at) for edit in edits} == {
        (("b", "a", "a", "The answer is 1."), (1, 0, 2, 3), 0),
        (("a", "a", "b", "The answer is 1."), (0, 2, 1, 3), 1),
    }


def test_drop_leaves_out_any_step_but_the_last():
    edits = proposals("drop", CHAIN)
    assert {(texts(edit), edit.origin, edit.at) for edit in edits} == {
        (CHAIN[1:], (1, 2), 0), ((CHAIN[0], CHAIN[2]), (0, 2), 1)}


def test_filler_restatement_and_padding_by_hand():
    for seed in range(20):
        (edit,) = proposals("filler", CHAIN, seed)
        place = edit.origin.index(None)
        assert 1 <= place <= 2
        assert texts(edit)[place] in FILLERS
        (edit,) = proposals("restate", CHAIN, seed)
        place = edit.origin.index(None)
        assert texts(edit)[place] in {opening + CHAIN[place - 1] for opening in RESTATEMENTS}
        (edit,) = proposals("pad", CHAIN, seed)
        assert edit.origin.count(None) == 2
        for text, origin in zip(texts(edit), edit.origin, strict=True):
            assert origin is not None or text in FACTS or "+" in text
    # Exact texts of one seed.
    assert texts(proposals("filler", CHAIN, 0)[0]) == (*CHAIN[:2], "We have verified this carefully.", CHAIN[2])


def test_true_sums_are_true():
    seen = set()
    for seed in range(200):
        for text in texts(proposals("pad", CHAIN, seed)[0]):
            if text.startswith(("Note", "As is")):
                left, right = text.removesuffix(".").rsplit(" ", 5)[1:], text.removesuffix(".").split(" = ")[1]
                assert int(left[0]) + int(left[2]) == int(right)
                seen.add(text)
    assert len(seen) > 10


def test_what_cannot_be_edited_proposes_nothing():
    assert all(not proposals(name, []) for name in PERTURBATIONS)
    assert not any(proposals(name, ["So it is."]) for name in ("number", "operator", "swap", "drop", "filler",
                                                               "restate"))


def test_observations_stay_and_agents_speak_on():
    steps = (Step("look 3 up", "4 found", "searcher"), Step("3 + 4 = 7", "", "writer"), Step("done", "", "writer"))
    for name in PERTURBATIONS:
        for edit in PERTURBATIONS[name].propose(steps, random.Random(1)):
            for step, origin in zip(edit.steps, edit.origin, strict=True):
                if origin is None:
                    assert step.observation == ""
                    assert step.agent in ("searcher", "writer")
                else:
                    assert (step.observation, step.agent) == (steps[origin].observation, steps[origin].agent)


CHAINS = st.lists(st.text(alphabet="ab 12+-*/=.,", min_size=1, max_size=20), max_size=6)


@given(chain=CHAINS, seed=st.integers(0, 9))
def test_for_any_chain(chain, seed):
    for name in DAMAGING:
        for edit in proposals(name, chain, seed):
            assert texts(edit) != tuple(chain)
            assert 0 <= edit.at < len(edit.steps)
            assert texts(edit)[-1] == chain[-1] or name in ("number", "operator")
    for name in HARMLESS:
        for edit in proposals(name, chain, seed):
            kept = [text for text, origin in zip(texts(edit), edit.origin, strict=True) if origin is not None]
            assert kept == chain
            assert [origin for origin in edit.origin if origin is not None] == list(range(len(chain)))
            assert len(edit.steps) > len(chain)
            assert edit.origin[-1] is not None
            assert edit.at is None
    for name in PERTURBATIONS:
        assert proposals(name, chain, seed) == proposals(name, chain, seed)

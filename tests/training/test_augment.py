"""Harmless steps in training chains: what is inserted where, with which target, and what stays."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.evaluation.adversarial import perturbations
from prm_core.training import augment
from prm_core.training.augment import with_harmless_steps, with_nonsense, with_unheard_steps
from prm_core.training.examples import IGNORED, Example
from prm_core.types import Call, Message, Step

STEPS = tuple(Step(f"step {i}") for i in range(5))
TARGETS = (1.0, 0.9, IGNORED, 0.0, IGNORED)


def copies(example: Example, kind: str, seed: int = 0) -> list[Example]:
    return with_harmless_steps([example] * 40, kind, 1.0, seed)[40:]


def example(targets: tuple[float, ...]) -> Example:
    return Example("p", "How many?", STEPS, targets)


def inserted(copy: Example) -> list[int]:
    return [index for index, step in enumerate(copy.steps) if step not in STEPS]


def shown(targets: tuple[float, ...]) -> list[float | None]:
    return [None if math.isnan(target) else target for target in targets]


def test_own_steps_and_their_targets_stay_in_order() -> None:
    for copy in copies(example(TARGETS), "process"):
        new = set(inserted(copy))
        assert 1 <= len(new) <= augment.MOST_INSERTED
        kept = [index for index in range(len(copy.steps)) if index not in new]
        assert tuple(copy.steps[index] for index in kept) == STEPS
        assert shown(tuple(copy.targets[index] for index in kept)) == shown(TARGETS)
        assert copy.steps[-1] == STEPS[-1], "the last step is the answer"


def test_an_inserted_step_is_right_while_all_before_it_are() -> None:
    found = {}
    for copy in copies(example(TARGETS), "process"):
        for index in inserted(copy):
            own = sum(step in STEPS for step in copy.steps[:index])
            found[own] = shown((copy.targets[index],))[0]
    # First and after steps 0 and 1 right; after step 2, which has no target, and after the wrong step 3 none.
    assert found == {0: 1.0, 1: 1.0, 2: 1.0, 3: None, 4: None}


def test_nothing_is_restated_before_anything_is_said() -> None:
    firsts = {copy.steps[0].text for seed in range(10) for copy in copies(example(TARGETS), "process", seed)
              if 0 in inserted(copy)}
    assert any(text in augment.FILLERS for text in firsts)
    assert not any(text.startswith(augment.RESTATEMENTS) for text in firsts)


def test_an_outcome_stays_and_a_value_goes_on() -> None:
    assert {copy.targets for copy in copies(example((0.0,)), "outcome")} == {(0.0,)}
    assert {copy.targets for copy in copies(example((1.0,)), "implicit")} == {(1.0,)}
    values = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    for copy in copies(example(values), "advantage"):
        assert len(copy.targets) == len(copy.steps) + 1
        for index in inserted(copy):
            assert copy.targets[index + 1] == copy.targets[index]
        kept = [copy.targets[0], *(copy.targets[i + 1] for i in range(len(copy.steps)) if i not in inserted(copy))]
        assert tuple(kept) == values


def test_every_sort_of_text_comes_and_sums_are_true() -> None:
    texts = {copy.steps[index].text for seed in range(10) for copy in copies(example(TARGETS), "process", seed)
             for index in inserted(copy)}
    assert any(text in augment.FILLERS for text in texts)
    assert any(text.endswith(tuple(step.text for step in STEPS)) for text in texts)
    sums = [text for text in texts if text.startswith("Also ")]
    assert sums
    for text in sums:
        a, b, c = (int(word.strip(",.")) for word in text.split() if word.strip(",.").isdigit())
        assert a + b == c


@given(st.floats(0, 1), st.integers(0, 5))
def test_originals_come_first_and_a_share_is_copied(share: float, seed: int) -> None:
    rows = [Example(f"p{i}", "?", STEPS, TARGETS) for i in range(200)]
    found = with_harmless_steps(rows, "process", share, seed)
    assert found[:200] == rows
    assert len(found) - 200 == pytest.approx(200 * share, abs=45)
    again = with_harmless_steps(rows, "process", share, seed)
    assert [row.steps for row in found] == [row.steps for row in again]


def test_chains_of_one_step_have_no_place_for_more() -> None:
    assert with_harmless_steps([Example("p", "?", STEPS[:1], (1.0,))], "process", 1.0, 0) == [
        Example("p", "?", STEPS[:1], (1.0,))]


def test_the_suite_s_texts_are_never_trained_on() -> None:
    trained = {*augment.FILLERS, *augment.FACTS, *augment.RESTATEMENTS}
    measured = {*perturbations.FILLERS, *perturbations.FACTS, *perturbations.SUMS, *perturbations.RESTATEMENTS}
    assert not trained & measured


# Words that say nothing


def garbled(targets: tuple[float, ...] = (1.0,) * 5, seed: int = 0) -> list[Example]:
    rows = with_nonsense([example(targets)] * 60, ["xx", "yy"], 1.0, seed)
    assert rows[:60] == [example(targets)] * 60
    return rows[60:]


def test_a_step_that_says_nothing_is_wrong_and_ends_what_is_judged() -> None:
    places = set()
    for copy in garbled():
        at = copy.targets.index(0.0)
        assert shown(copy.targets) == [1.0] * at + [0.0] + [None] * (len(copy.steps) - at - 1)
        assert copy.steps[:at] == STEPS[:at]
        inserted = len(copy.steps) > len(STEPS)
        assert copy.steps[at + 1 :] == STEPS[at + 1 - inserted :]
        words = copy.steps[at].text.split()[0 if inserted else 2 :]
        assert 1 <= len(words) <= augment.MOST_WORDS
        assert set(words) <= {"xx", "yy", "step", *"01234"}
        assert inserted or copy.steps[at].text.startswith(STEPS[at].text)
        places.add((at, inserted))
    assert len(places) == 10, "every step, both ways"


def test_the_targets_before_nonsense_stay() -> None:
    for copy in garbled(TARGETS):
        at = next(index for index, step in enumerate(copy.steps) if step not in STEPS)
        assert shown(copy.targets[:at]) == shown(TARGETS[:at])


def test_nonsense_comes_from_both_vocabularies_and_the_seed() -> None:
    words = {word for copy in garbled() for step in copy.steps for word in step.text.split()}
    assert {"xx", "yy"} < words
    assert [copy.steps for copy in garbled()] == [copy.steps for copy in garbled()] != [
        copy.steps for copy in garbled(seed=1)]
    assert with_nonsense([example(TARGETS)], ["xx"], 0.0, 0) == [example(TARGETS)]


def test_an_example_that_is_not_to_be_copied_is_not_and_copies_count_once() -> None:
    heavy, alone = Example("p", "q", STEPS, (1.0,) * 5, weight=4.0), Example("p", "q", (Step("odd"),) * 2, (1.0, 0.0),
                                                                              copied=False)
    for found in (with_harmless_steps([heavy, alone], "process", 1.0, 0),
                  with_nonsense([heavy, alone], ["word"], 1.0, 0)):
        assert found[:2] == [heavy, alone]
        (copy,) = found[2:]
        assert copy.weight == 1.0
        assert not any("odd" in step.text for step in copy.steps)


CALLS = (Call("look", "{}", "a cup"), Call("buy", "{}", "busy", failed=True))
TURNS = (Step("no reply"), Step("so", calls=CALLS, agent="worker"), Step("", calls=CALLS[1:], observation="x"),
         Step("why?", context=(Message("user", "because"),)))


@pytest.mark.parametrize("first", [(), (0.3,)], ids=["process", "advantage"])
def test_a_turn_is_trained_before_its_reply_too(first: tuple[float, ...]) -> None:
    whole = Example("p", "q", TURNS, (*first, 1.0, 0.9, IGNORED, 0.0), weight=3.0)
    original, *copies = with_unheard_steps([whole], 1.0, 0)
    assert original is whole
    assert [(copy.prompt, copy.weight) for copy in copies] == [("q", 1.0)] * 2
    # Where there is no reply, or no target, there is nothing to learn.
    bare = Step("so", calls=(Call("look", "{}"), Call("buy", "{}")), agent="worker")
    assert [copy.steps for copy in copies] == [(TURNS[0], bare), (*TURNS[:3], Step("why?"))]
    assert shown(copies[0].targets) == shown((*[IGNORED] * (len(first) + 1), 0.9))
    assert shown(copies[1].targets) == shown((*[IGNORED] * (len(first) + 3), 0.0))


def test_turns_before_their_replies_are_drawn_by_share_and_seed() -> None:
    rows = [Example("p", "q", TURNS, (1.0, 0.9, 1.0, 0.0))] * 100
    found = {seed: with_unheard_steps(rows, 0.5, seed)[100:] for seed in (0, 1)}
    assert all(120 < len(copies) < 180 for copies in found.values())
    assert [copy.steps for copy in found[0]] == [copy.steps for copy in with_unheard_steps(rows, 0.5, 0)[100:]]
    assert [copy.steps for copy in found[0]] != [copy.steps for copy in found[1]]
    assert with_unheard_steps(rows, 0.0, 0) == rows
    alone = Example("p", "q", TURNS, (1.0, 0.9, 1.0, 0.0), copied=False)
    assert with_unheard_steps([alone], 1.0, 0) == [alone]

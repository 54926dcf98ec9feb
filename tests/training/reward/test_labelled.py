"""Examples of labelled chains of any format: targets, masks after the first error, texts as they are."""

from __future__ import annotations

import math

import pytest

from prm_core.errors import InputError
from prm_core.formats import LabelledChain
from prm_core.training.examples import Example, encode_examples
from prm_core.training.reward.labelled import examples_of
from prm_core.types import Step
from tests.builders.training import make_encoder


def chain(prompt: str, labels: tuple[float | None, ...], outcome: bool | None = None, **values) -> LabelledChain:
    steps = tuple(Step(f"step {i}") for i in range(len(labels)))
    return LabelledChain(prompt, steps, labels, outcome=outcome, **values)


def targets(chains: list[LabelledChain], kind: str = "process", *, mask: bool = False) -> list[list[float | None]]:
    found = examples_of(chains, kind, mask_after_error=mask)
    return [[None if math.isnan(target) else target for target in example.targets] for example in found]


def test_an_example_is_of_its_prompt() -> None:
    found, = examples_of([chain("How many?", (1.0, 0.0))], "process", mask_after_error=False)
    assert found == Example("How many?", "How many?", (Step("step 0"), Step("step 1")), (1.0, 0.0))


def test_labels_become_targets_as_they_are() -> None:
    """Soft labels cast to int (0.9 to 0) and an ignored label cast to True are what METHODS 7 warns of."""
    assert targets([chain("a", (0.9, None, 1.0, 0.0)), chain("b", (0.25,))]) == [[0.9, None, 1.0, 0.0], [0.25]]


@pytest.mark.parametrize(("labels", "expected"), [
    ((1.0, 0.0, 1.0, 0.0), [1.0, 0.0, None, None]),
    ((0.0, 1.0), [0.0, None]),
    ((0.5, 0.49, 0.9), [0.5, 0.49, None]),
    ((None, 1.0, None, 0.2, None, 1.0), [None, 1.0, None, 0.2, None, None]),
    ((1.0, 1.0), [1.0, 1.0]),
])
def test_steps_after_the_first_wrong_one_may_train_nothing(labels, expected) -> None:
    assert targets([chain("a", labels)], mask=True) == [expected]
    assert targets([chain("a", labels)]) == [list(labels)]


def test_outcome_kinds_take_the_outcome() -> None:
    chains = [chain("a", (1.0, 0.0), outcome=False), chain("b", (None,), outcome=True), chain("c", (1.0,))]
    for kind in ("outcome", "implicit"):
        assert targets(chains, kind, mask=True) == [[0.0], [1.0], [None]]


def shared(at: list[str], labels: tuple[float | None, ...], tree: str = "t") -> LabelledChain:
    """A chain of a tree of candidates, as PRM800K is read."""
    return chain("a", labels, meta={"tree": tree, "nodes": [{"at": place} for place in at]})


def test_a_step_that_chains_of_a_tree_share_is_one_target() -> None:
    chains = [shared(["0", "1"], (1.0, 0.0)), shared(["0", "2"], (1.0, 1.0)), shared(["0"], (0.0,), "u")]
    assert targets(chains) == [[1.0, 0.0], [None, 1.0], [0.0]]


def test_the_mask_is_set_before_shared_labels_are_taken_away() -> None:
    """A wrong step labelled in an earlier chain still masks what follows it in this one."""
    chains = [shared(["0", "1"], (0.0, 1.0)), shared(["0", "2"], (0.0, 1.0))]
    assert targets(chains, mask=True) == [[0.0, None], [None, None]]


def test_texts_stay_as_they_are_and_tools_are_part_of_the_question() -> None:
    steps = (Step("a\nb"), Step("c", "d\n\ne"), Step("<|step|>"))
    given = LabelledChain("q\nr", steps, (1.0, 1.0, 0.0), tools="[1]")
    found, = examples_of([given], "process", mask_after_error=False)
    assert found.steps == steps
    assert found.prompt == "q\nr\n\nTools: [1]"
    encode_examples(make_encoder(), [found], "process")


@pytest.mark.parametrize(("kind", "what"), [("process", "a labelled step"), ("outcome", "an outcome")])
def test_chains_without_anything_to_train_on_are_an_error(kind: str, what: str) -> None:
    with pytest.raises(InputError, match=f"none of the 2 chains has {what}, which the {kind} model trains on"):
        examples_of([chain("a", (None, None)), chain("b", (None,))], kind, mask_after_error=True)

"""The embedded domain and the data it makes: worked solutions, splits, human-labelled chains, determinism."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.domains import DOMAINS, arithmetic, make_trajectory
from prm_core.domains.arithmetic import Event, Level, ParsedStep
from prm_core.domains.oracle import ORACLES, first_error
from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.problems import embedded
from prm_core.types import Problem, Step, StepLabel, Trajectory
from tests.builders import tiny
from tests.builders.quality import make_config

SEEDS = st.integers(0, 10**9)
SIZES = {"warmup": 60, "train": 40, "dev": 20, "test": 20, "shifted": 12, "human_chains": 30}
LEVELS = st.sampled_from(tuple(arithmetic.LEVELS.values()))
ANY_LEVEL = st.sampled_from(
    [one for level in arithmetic.LEVELS.values() for one in (level, *arithmetic.shifts(level))])


def draw(seed: int, level: Level = arithmetic.STANDARD) -> Problem:
    return arithmetic.draw_problem(random.Random(seed), "p", level)


@given(SEEDS, ANY_LEVEL)
def test_worked_solutions_account_for_every_event_in_order(seed, level):
    problem = draw(seed, level)
    events = list(arithmetic.events_of(problem))
    steps = [arithmetic.parse_step(text) for text in problem.meta["solution"][:-1]]
    value = problem.meta["start"]

    assert len(events) in level.lengths
    assert len(steps) == len(events)
    for step, event in zip(steps, events, strict=True):
        result = arithmetic.calculate(value, event.operation, event.operand)
        assert step == ParsedStep(event.phrase, value, event.operation, event.operand, result)
        assert 1 <= result <= level.max_value
        value = result
    assert problem.answer == str(value)
    assert problem.meta["solution"][-1] == f"The answer is {value}."


@given(SEEDS, ANY_LEVEL)
def test_the_question_tells_the_start_and_every_event_in_order(seed, level):
    problem = draw(seed, level)
    *story, question = problem.prompt.split(". ")
    phrases = [event.phrase for event in arithmetic.events_of(problem)]

    assert story[0].endswith(f"{problem.meta['start']} {question.split()[2]}")
    # At most one sentence is beside the point.
    told = iter(story[1:])
    assert all(phrase in told for phrase in phrases)
    assert len(story) - 1 - len(phrases) in (0, 1)


@given(SEEDS, ANY_LEVEL)
def test_no_text_of_the_domain_holds_the_separator_or_a_second_colon(seed, level):
    problem = draw(seed, level)

    assert all("\n" not in text for text in (problem.prompt, *problem.meta["solution"]))
    assert all(text.count(":") == 1 for text in problem.meta["solution"][:-1])


@given(SEEDS)
def test_a_worked_solution_is_a_right_trajectory(seed):
    problem = draw(seed)

    chain = make_trajectory(DOMAINS["arithmetic"], problem, problem.meta["solution"], trajectory_id="t", policy="x",
                            seed=1)

    assert (chain.answer, chain.outcome) == (problem.answer, True)


@pytest.mark.parametrize(("left", "operation", "right", "result"), [
    (7, "+", 5, 12), (7, "-", 9, -2), (7, "*", 3, 21), (9, "/", 3, 3), (7, "/", 3, None), (7, "/", 0, None),
    (7, "^", 2, None),
])
def test_calculate(left, operation, right, result):
    assert arithmetic.calculate(left, operation, right) == result


def test_steps_are_written_and_parsed_back():
    text, value = arithmetic.write_step(Event("Mia buys 5 more", "+", 5), 7)

    assert (text, value) == ("Mia buys 5 more: 7 + 5 = 12.", 12)
    assert arithmetic.parse_step(f" {text} ") == ParsedStep("Mia buys 5 more", 7, "+", 5, 12)
    with pytest.raises(ValueError, match="not a whole number"):
        arithmetic.write_step(Event("Mia keeps one of 3 equal parts", "/", 3), 7)


@pytest.mark.parametrize("text", [
    "The answer is 12.", "", "Mia buys 5 more: 7 + 5 = 12", "Mia buys 5 more 7 + 5 = 12.", "a: b: 7 + 5 = 12.",
    "Mia buys 5 more: 7 + 5 = -2.", "Mia buys 5 more: 7 + 5 = 12. And more.", "Mia buys 5 more: 7 + = 12.",
])
def test_what_is_not_of_the_step_language_does_not_parse(text):
    assert arithmetic.parse_step(text) is None


def test_problems_are_distinct_named_by_split_and_leave_out_what_they_are_told_to():
    first = arithmetic.make_problems("train", 50, 3)
    taken = {problem.prompt for problem in first[::2]}
    second = arithmetic.make_problems("train", 50, 3, taken)

    assert first == arithmetic.make_problems("train", 50, 3)
    assert first != arithmetic.make_problems("train", 50, 4)
    assert [problem.id for problem in first] == [f"train-{n:06d}" for n in range(50)]
    assert len({problem.prompt for problem in first}) == 50
    assert not taken & {problem.prompt for problem in second}


def test_problems_of_the_standard_level_are_the_ones_they_always_were():
    """Figures of different builds are compared on them."""
    drawn = arithmetic.make_problems("test", 200, 0)
    assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:16] == "33d5a5ff2d6681af"


def traits(problem: Problem) -> tuple[str, set[str], int]:
    """The name that is asked for; what is told and asked, without names and numbers; how many events there are."""
    name = problem.prompt.split(" has ")[0]
    sentences = problem.prompt.rstrip("?").split(". ")[1:]
    told = {re.sub(r"\d+|\b(?!The|How)[A-Z][a-z]+\b( [A-Z][a-z]+)?", "_", sentence) for sentence in sentences}
    things = "|".join(arithmetic.STANDARD.things)
    return name, {re.sub(things, "things", text) for text in told}, len(problem.meta["events"])


@given(SEEDS, LEVELS)
def test_a_shifted_problem_has_a_name_phrases_or_a_length_that_no_training_saw(seed, level):
    seen = [traits(problem) for problem in arithmetic.make_problems("train", 40, seed, (), (level,))]
    names, lengths = ({one[part] for one in seen} for part in (0, 2))
    told = set().union(*(one[1] for one in seen))
    # Whatever is drawn: of one word, of the level's own phrases and lengths.
    assert all(" " not in name for name in names)
    assert lengths <= set(level.lengths)
    assert "How many things has _" not in told

    shifted = arithmetic.make_problems("shifted", 6, seed, (), arithmetic.shifts(level))
    for problem, way in zip(shifted, ("name", "phrases", "length") * 2, strict=True):
        name, phrases, length = traits(problem)
        assert (" " in name and name not in names) == (way == "name")
        assert ("How many things has _" in phrases) == (way == "phrases")
        assert (length not in level.lengths) == (way == "length")


@given(SEEDS)
def test_who_pays_when_two_people_settle_is_a_fact_that_no_story_contradicts(seed):
    for problem in arithmetic.make_problems("train", 10, seed, (), (arithmetic.HARD,)):
        for event in arithmetic.events_of(problem):
            if match := re.fullmatch(r"(\w+) settles (\d+) with (\w+)", event.phrase):
                assert event.operation == ("-" if arithmetic.owes(match[1], match[3]) else "+")
                assert event.operand == int(match[2])


def test_of_two_people_one_owes_the_other_and_nothing_tells_who_in_general():
    names = arithmetic.HARD.names
    owed = {(a, b): arithmetic.owes(a, b) for a in names for b in names if a != b}
    assert all(owed[a, b] != owed[b, a] for a, b in owed)
    # For nearly everybody it takes the other's name to know.
    sure = [name for name in names if len({owed[name, other] for other in names if other != name}) == 1]
    assert not sure
    told = [event for problem in arithmetic.make_problems("train", 300, 0, (), (arithmetic.HARD,))
            for event in arithmetic.events_of(problem)]
    share = sum(" settles " in event.phrase for event in told) / len(told)
    assert 0.1 < share < 0.2
    assert not any(" settles " in problem.prompt for problem in arithmetic.make_problems("train", 300, 0))


def test_shifted_phrases_are_no_levels_own_and_made_of_words_that_every_level_tells():
    own = [{*level.distractors, level.question, *(one for group in level.phrases.values() for one in group)}
           for level in arithmetic.LEVELS.values()]
    new = {*arithmetic.NEW_PHRASES.values(), arithmetic.NEW_QUESTION, *arithmetic.NEW_DISTRACTORS}
    for texts in own:
        assert not new & texts
        assert {word for text in new for word in text.rstrip("?").split()} <= {
            word for text in texts for word in text.rstrip("?").split()}


def test_more_problems_begin_with_the_same_ones():
    assert arithmetic.make_problems("train", 60, 3)[:20] == arithmetic.make_problems("train", 20, 3)


@given(SEEDS, LEVELS)
def test_a_corrupted_solution_has_a_wrong_step_and_every_step_before_it_is_worked(seed, level):
    problem = draw(seed, level)

    texts = embedded.corrupt_solution(problem, random.Random(seed))
    error = first_error(ORACLES["arithmetic"](problem, [Step(text) for text in texts]))

    assert error >= 0
    assert texts[:error] == problem.meta["solution"][:error]
    assert DOMAINS["arithmetic"].read_answer(texts[-1]) is not None


def test_corruptions_are_of_every_kind():
    """Wrong result, wrong quantity, wrong operation, an event left out, an early answer."""
    kinds = Counter()
    for seed in range(300):
        problem = draw(seed)
        texts = embedded.corrupt_solution(problem, random.Random(seed))
        events = list(arithmetic.events_of(problem))
        error = first_error(ORACLES["arithmetic"](problem, [Step(text) for text in texts]))
        step = arithmetic.parse_step(texts[error])
        if step is None:
            kinds["early answer"] += 1
        elif step.phrase != events[error].phrase:
            kinds["event left out"] += 1
        elif step.operation != events[error].operation:
            kinds["operation"] += 1
        elif step.right != events[error].operand:
            kinds["quantity"] += 1
        else:
            assert arithmetic.calculate(step.left, step.operation, step.right) != step.result
            kinds["result"] += 1

    assert set(kinds) == {"early answer", "event left out", "operation", "quantity", "result"}
    assert min(kinds.values()) >= 8
    assert kinds["result"] == max(kinds.values())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_data_is_the_same_bytes_for_the_same_seed(tmp_path):
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        embedded.make_data(tmp_path / name, dataclasses.replace(make_config(data=SIZES), seed=seed))

    one = files(tmp_path / "one")
    assert set(one) == {"warmup.jsonl", "train.jsonl", "dev.jsonl", "test.jsonl", "shifted.jsonl",
                        "human/problems.jsonl", "human/trajectories.jsonl", "human/labels.jsonl"}
    assert one == files(tmp_path / "two")
    assert all(one[name] != content for name, content in files(tmp_path / "other").items())


def test_splits_share_no_question_and_no_id(tmp_path, monkeypatch):
    """A split by step or by chain would put one question on both sides (METHODS 7)."""
    # So few possible questions that splits drawn apart repeat each other's.
    level = dataclasses.replace(
        arithmetic.STANDARD, names=("Mia", "Ben"), things=("pens", "coins"), lengths=(2, 2), max_start=3,
        max_operand=4, distractor_share=0.0, weights={"+": 0.5, "-": 0.5},
        phrases={"+": ("{name} buys {n}",), "-": ("{name} loses {n}",)})
    make = partial(arithmetic.make_problems, levels=(level,))
    domain = dataclasses.replace(DOMAINS["arithmetic"], levels={"standard": make}, shifted={"standard": make})
    monkeypatch.setitem(DOMAINS._entries, "arithmetic", domain)
    drawn = [p.prompt for split in embedded.SPLITS for p in make(split, 20, 0)]
    assert len(set(drawn)) < len(drawn)

    sizes = {"warmup": 25, "train": 20, "dev": 10, "test": 10, "shifted": 10, "human_chains": 15}
    embedded.make_data(tmp_path, make_config(data=sizes))
    splits = {name: store.read_jsonl(Problem, tmp_path / f"{name}.jsonl") for name in (*embedded.SPLITS, "shifted")}
    splits["human_chains"] = store.read_jsonl(Problem, tmp_path / "human" / "problems.jsonl")
    problems = [problem for split in splits.values() for problem in split]

    assert {name: len(split) for name, split in splits.items()} == sizes
    assert len({problem.prompt for problem in problems}) == len(problems)
    assert len({problem.id for problem in problems}) == len(problems)


def test_later_splits_give_way_to_earlier_ones():
    """Few distinct problems: a split made again with the same generator would repeat the held-out ones."""
    held_out = {problem.prompt for problem in arithmetic.make_problems("train", 30, 0)}
    taken = held_out | {arithmetic.make_problems("human", 1, 0)[0].prompt}
    problems, chains, _ = embedded.make_human_labels(10, 0, taken)

    assert not held_out & {problem.prompt for problem in problems}
    assert problems[0].prompt != arithmetic.make_problems("human", 1, 0)[0].prompt
    assert len(problems) == len(chains) == 10


def test_human_labels_are_the_oracles_for_every_step(tmp_path):
    embedded.make_data(tmp_path, make_config(data=SIZES))
    problems = {p.id: p for p in store.read_jsonl(Problem, tmp_path / "human" / "problems.jsonl")}
    chains = store.read_jsonl(Trajectory, tmp_path / "human" / "trajectories.jsonl")
    labels = store.read_jsonl(StepLabel, tmp_path / "human" / "labels.jsonl")

    expected = [
        (chain.id, index, right)
        for chain in chains
        for index, right in enumerate(ORACLES["arithmetic"](problems[chain.problem_id], chain.steps))
    ]
    assert [(label.trajectory_id, label.step_index, label.is_correct) for label in labels] == expected
    assert {(label.strategy, label.confidence, label.tokens) for label in labels} == {("human:oracle", 1.0, 0)}
    assert all(label.value == float(label.is_correct) for label in labels)
    # Calibration needs both kinds.
    assert 0.1 < sum(not right for _, _, right in expected) / len(expected) < 0.6
    assert 0.3 < sum(bool(chain.outcome) for chain in chains) / len(chains) < 0.8


def test_a_domain_without_such_problems_writes_an_empty_split_and_refuses_a_level_it_does_not_know(
    tmp_path, monkeypatch,
):
    monkeypatch.setitem(DOMAINS._entries, "arithmetic", dataclasses.replace(DOMAINS["arithmetic"], shifted={}))
    embedded.make_data(tmp_path / "data", make_config(data=SIZES))
    assert (tmp_path / "data" / "shifted.jsonl").read_bytes() == b""

    with pytest.raises(InputError, match=r"data\.level: .* has no level 'easy'; it has standard, hard"):
        embedded.make_data(tmp_path / "other", make_config(data={**SIZES, "level": "easy"}))
    assert not (tmp_path / "other").exists()


def test_a_domain_without_a_generator_says_how_to_bring_problems(tmp_path):
    with pytest.raises(InputError, match="domain 'general' cannot make problems; bring your own"):
        embedded.make_data(tmp_path, dataclasses.replace(make_config(), domain="general"))

    assert list(tmp_path.iterdir()) == []


def test_an_unknown_domain_names_the_known_ones():
    with pytest.raises(InputError, match=r"unknown domain 'algebra'; known: arithmetic, .*general"):
        DOMAINS["algebra"]


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="domain 'general' is registered twice"):
        DOMAINS.register("general")(DOMAINS["general"])


def test_problems_from_outside_have_no_oracle():
    assert "arithmetic" in ORACLES
    assert "general" not in ORACLES


@pytest.mark.parametrize(("texts", "answer", "outcome"), [
    (tiny.RIGHT, "5", True),
    (tiny.WRONG, "6", False),
    (tiny.RIGHT[:2], None, False),
    ((*tiny.WRONG[:2], "The answer is 5."), "5", True),
    ((*tiny.RIGHT, "Thanks!"), None, False),
    ((), None, False),
])
def test_the_answer_is_read_from_the_last_step(texts, answer, outcome):
    trajectory = tiny.chain(texts).trajectory

    assert (trajectory.answer, trajectory.outcome) == (answer, outcome)
    assert trajectory.steps == tuple(Step(text) for text in texts)

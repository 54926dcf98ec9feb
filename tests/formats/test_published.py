"""Formats of other projects: what each record means, what each format refuses, and the traps upstream fell into."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm_core.errors import InputError
from prm_core.formats import FORMATS, LabelledChain, labelled_once
from prm_core.platform.records import read_rows
from prm_core.types import Call, Message, Step

TRL = {"prompt": "2+2?", "completions": ["Two and two.", "That is 5."], "labels": [True, False], "id": 7}
SHEPHERD = {"input": "How many? Step 1: 2 + 3 = 5. ки\nStep 2: The answer is: 5 ки",
            "label": "How many? Step 1: 2 + 3 = 5. +\nStep 2: The answer is: 5 -", "task": "GSM8K"}
PROCESS = {"id": "g-0", "generator": "m", "problem": "P", "steps": ["a", "b", "c"], "final_answer_correct": False,
           "label": 1}
MISTAKE = {"input": "sort b a", "steps": ["a first", "", "then b"], "target": "a b", "answer": "b a",
           "mistake_index": 2}
BENCH = {"original_question": "Q0", "modified_question": "Q", "original_process": ["1. x", "2. y"],
         "modified_process": ["1. x", "2. z", "3. w"], "modified_steps": [2], "error_steps": [3, 2], "reason": "r",
         "idx": "i1", "classification": "confidence"}
CALL = {"id": "c", "type": "function", "function": {"name": "search", "arguments": '{"q": "x"}'}}
AGENT = {
    "question": "Who?", "messages": [
        {"role": "system", "content": "Be useful."}, {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
        {"role": "tool", "name": "search", "content": "nobody", "tool_call_id": "c"},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "Ann"},
        {"role": "assistant", "content": "Ann."}],
    "tools": [{"type": "function"}], "step_labels": {"2": 0, "5": 1, "7": -1}, "final_label": -1}
APS = {"question": "Q?", "final_answer": "4", "question_id": "u", "reasoning_steps": [
    {"solution_prefix": "Q?", "mc_value": 0.5},
    {"solution_prefix": "Q?\n\nfirst", "mc_value": 0.75},
    {"solution_prefix": "Q?\n\nother ", "mc_value": 0.0},
    {"solution_prefix": "Q?\n\nfirst\n\nhalf\nmore", "mc_value": 1.0},
    {"solution_prefix": "Q?\n\nfirst", "mc_value": 0.25}]}

TREE = {"question": "Q? ", "final_answer": "4", "reasoning_steps": {"text": "Q?", "mc_value": 0.5, "children": [
    {"text": "first", "mc_value": 0.75, "children": [{"text": "half\nmore ", "mc_value": 1.0, "children": []},
                                                    {"text": "first half", "mc_value": 0.25, "N": 3, "children": []}]},
    {"text": "other", "mc_value": 0.0, "children": []}]}}


def completion(text: str, rating: int | None, **more: Any) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": False, **more}


NESTED = {
    "labeler": "l", "timestamp": "t", "generation": None,
    "question": {"problem": "P", "ground_truth_answer": "4", "ground_truth_solution": "s"},
    "label": {"total_time": 9, "finish_reason": "solution", "steps": [
        {"completions": [completion("a0", 1), completion("a1", -1)], "human_completion": None, "chosen_completion": 0},
        {"completions": [completion("b0", -1)], "chosen_completion": None,
         "human_completion": {"text": "bh", "rating": None, "source": "human", "flagged": False}},
        {"completions": [completion("c0", 0), completion("c1", 1)], "human_completion": None,
         "chosen_completion": 1}]}}


def flat(before: list[str], text: str, rating: float | None, *flags: bool, answer: str | None = None):
    human, solution, preferred = (*flags, False, False, False)[:3]
    return {"instruction": "P", "responses": before, "next_response": text, "answer": answer,
            "is_human_response": human, "is_solution": solution, "is_preferred_response": preferred, "rating": rating}


FLAT = [flat([], "a0", 1.0, False, False, True), flat([], "a1", -1.0), flat(["a0"], "b0", -1.0),
        flat(["a0"], "bh", None, True, False, True), flat(["a0", "bh"], "c0", 0.0),
        flat(["a0", "bh"], "c1", 1.0, False, True, True, answer="4"), flat(["a0", "bh"], "c2", None)]
FLOW = {"conversations": [
    {"role": "user", "content": "How many? Step 1: 2 + 3 = 5"}, {"role": "assistant", "content": "+"},
    {"role": "user", "content": "Step 2: The answer is: 6"}, {"role": "assistant", "content": "-"}], "id": "x"}
RLHF = {"input": SHEPHERD["input"], "value": ["+", "-"], "task": "GSM8K"}
SOFT_RLHF = {"text": SHEPHERD["input"], "labels": [0.9, 0.125]}
PADDLE = {"src": ["Hi.", "How many?"], "tgt": ["Ask."], "responses": ["a", " ", "b"], "labels": ["+", "+", "-"]}
MR = {"uuid": "u", "question": "Q", "ground_truth_answer": "5", "model_output_steps": ["a", "b", "c"],
      "model_output_answer_correctness": "wrong", "model_output_solution_correctness": "wrong",
      "model_output_solution_first_error_step": 2, "question_type": "original"}
TAU = {"task_id": 0, "reward": 0.0, "info": {"source": "user"}, "traj": AGENT["messages"], "trial": 0}
EXAMPLES = {
    "trl": [TRL], "math_shepherd": [SHEPHERD], "processbench": [PROCESS], "bigbench_mistake": [MISTAKE],
    "prmbench": [BENCH], "agentprocessbench": [AGENT], "math_aps": [APS], "prm800k": [NESTED], "prm800k_flat": FLAT,
    "rlhflow": [FLOW], "openrlhf": [RLHF, SOFT_RLHF], "paddle": [PADDLE], "mr_gsm8k": [MR], "tau_bench": [TAU]}


def put(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def read(tmp_path):
    def read(name: str, *rows: Any, **options: Any) -> list[LabelledChain]:
        return list(FORMATS[name].read(put(tmp_path / "in.jsonl", list(rows)), **options))

    return read


@pytest.fixture
def written(tmp_path):
    def written(name: str, chains: list[LabelledChain], suffix: str = ".jsonl") -> list[dict[str, Any]]:
        FORMATS[name].write(tmp_path / f"out{suffix}", iter(chains))
        return [row for _, row in read_rows(tmp_path / f"out{suffix}")]

    return written


def texts(chain: LabelledChain) -> list[str]:
    return [step.text for step in chain.steps]


def test_every_row_of_the_table_is_registered():
    assert set(EXAMPLES) <= set(FORMATS)


@pytest.mark.parametrize("neutral", ["right", "wrong"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_what_was_read_is_written_back(read, written, name, suffix, neutral):
    chains = read(name, *EXAMPLES[name], **({"neutral": neutral} if FORMATS[name].rated else {}))
    back = written(name, chains, suffix)
    assert back == EXAMPLES[name]
    # True equals 1 in Python, and is something else in JSON.
    assert json.dumps(back, sort_keys=True) == json.dumps(EXAMPLES[name], sort_keys=True)


def test_flat_prm800k_makes_the_round_trip_in_parquet(read, written):
    assert written("prm800k_flat", read("prm800k_flat", *FLAT), ".parquet") == FLAT


def test_trl(read):
    chain, = read("trl", TRL)
    assert (chain.prompt, texts(chain), chain.labels) == ("2+2?", TRL["completions"], (1.0, 0.0))
    assert (chain.answer, chain.outcome, chain.first_error) == (None, None, 1)


def test_soft_labels_stay_soft_and_the_ignore_index_is_no_label(read, written):
    rows = [{"prompt": "p", "completions": ["a", "b", "c"], "labels": [0.9, -100, 0.1]},
            {"prompt": "p", "completions": ["a", "b", "c"], "labels": [True, -100, False]},
            {"prompt": "p", "completions": ["a", "b"], "labels": [1, 0]}]
    chains = read("trl", *rows)
    assert [chain.labels for chain in chains] == [(0.9, None, 0.1), (1.0, None, 0.0), (1.0, 0.0)]
    labels = [row["labels"] for row in written("trl", chains)]
    assert labels == [row["labels"] for row in rows]
    assert [[type(label) for label in row] for row in labels] == [[float] * 3, [bool, int, bool], [float] * 2]


def test_math_shepherd(read):
    chain, = read("math_shepherd", SHEPHERD)
    assert (chain.prompt, texts(chain)) == ("How many?", ["Step 1: 2 + 3 = 5.", "Step 2: The answer is: 5"])
    assert chain.labels == (1.0, 0.0)


@pytest.mark.parametrize(("text", "prompt", "steps"), [
    ("Is it? it is 4 @\nStep 2: so 4 @", "Is it?", ["it is 4", "Step 2: so 4"]),
    ("Round to 0.1 @ it @", "Round to 0.1", ["it"]),
    ("Ann @ asks? Step 1: yes @\n", "Ann  asks?", ["Step 1: yes"]),
    ("Read Step 1: of it? step 1: no+-+ @", "Read Step 1: of it?", ["step 1: no+-+"]),
])
def test_odd_records_of_math_shepherd(read, written, text, prompt, steps):
    row = {"input": text.replace("@", "ки"), "label": text.replace("@", "-"), "task": "MATH"}
    chains = read("math_shepherd", row)
    assert (chains[0].prompt, texts(chains[0])) == (prompt, steps)
    assert chains[0].labels == (0.0,) * len(steps)
    assert written("math_shepherd", chains) == [row]


@pytest.mark.parametrize(("first", "prompt", "steps", "noted"), [
    ("How many? Step 1: a", "How many?", ["Step 1: a", "b Step 1: c"], {}),
    ("How many? a", "How many?", ["a", "b Step 1: c"],
     {"questions parted from their first step at the last question mark": 1}),
    ("Count them. a", "Count them. a", ["b Step 1: c"], {"marks inside a question taken off": 1})])
def test_where_the_first_step_of_a_conversation_begins(read, written, first, prompt, steps, noted):
    counts: Counter[str] = Counter()
    row = {"conversations": [{"role": "user", "content": first}, {"role": "assistant", "content": "+"},
                             {"role": "user", "content": "b Step 1: c"}, {"role": "assistant", "content": "-"}]}
    chains = read("rlhflow", row, noted=counts)
    assert (chains[0].prompt, texts(chains[0]), counts) == (prompt, steps, noted)
    assert chains[0].labels == (1.0, 0.0)[-len(steps):]
    assert written("rlhflow", chains) == [row]


def test_a_lone_step_that_nothing_parts_from_its_question_is_left_out(read):
    counts: Counter[str] = Counter()
    row = {"conversations": [{"role": "user", "content": "Count them. a"}, {"role": "assistant", "content": "+"}]}
    assert read("rlhflow", row, noted=counts) == []
    assert counts == {"chains whose only step nothing parts from the question left out": 1}


def test_the_same_chains_in_three_projects_forms(read):
    chains = read("math_shepherd", SHEPHERD, FLOW, RLHF, SOFT_RLHF)
    assert [chain.source for chain in chains] == ["math_shepherd", "rlhflow", "openrlhf", "openrlhf"]
    assert {chain.prompt for chain in chains} == {"How many?"}
    assert [chain.labels for chain in chains] == [(1.0, 0.0)] * 3 + [(0.9, 0.125)]
    assert {texts(chain)[0].rstrip(".") for chain in chains} == {"Step 1: 2 + 3 = 5"}


def test_paddle_has_the_turns_before_in_its_prompt(read):
    chain, = read("paddle", PADDLE)
    assert (chain.prompt, texts(chain), chain.labels) == ("Hi.\n\nAsk.\n\nHow many?", ["a", "b"], (1.0, 0.0))
    chain, = read("paddle", {"src": "How many?", "responses": ["a"], "labels": ["+"]})
    assert chain.prompt == "How many?"


@pytest.mark.parametrize(("change", "labels"), [
    ({}, (1.0, 0.0, None)), ({"model_output_solution_first_error_step": "3"}, (1.0, 1.0, 0.0)),
    ({"model_output_solution_first_error_step": "Step 1"}, (0.0, None, None)),
    ({"model_output_solution_correctness": "correct", "model_output_solution_first_error_step": "N/A"}, (1.0,) * 3),
    # Called wrong, and nobody says where: nothing is known of its steps.
    ({"model_output_solution_first_error_step": "N/A"}, (None,) * 3),
    ({"model_output_solution_first_error_step": None, "model_output_solution_correctness": None}, (None,) * 3)])
def test_mr_gsm8k(read, written, change, labels):
    chains = read("mr_gsm8k", MR | change, MR | change | {"model_output_steps": "a\nb\nc"})
    assert [(chain.prompt, texts(chain), chain.labels, chain.answer, chain.outcome) for chain in chains] == [
        ("Q", ["a", "b", "c"], labels, "5", False)] * 2
    if labels[0] is not None:
        assert written("mr_gsm8k", chains) == [MR | change, MR | change | {"model_output_steps": "a\nb\nc"}]


def test_chat_messages_of_trl(read, written):
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"text": "2+2?"}]}
    said = {"role": "assistant", "content": "That is 5."}
    row = TRL | {"prompt": [system, user], "completions": ["Two and two.", [said]]}
    chain, = read("trl", row)
    assert (chain.prompt, texts(chain)) == ("Be brief.\n\n2+2?", ["Two and two.", "That is 5."])
    assert written("trl", [chain]) == [row]
    assert texts(read("trl", TRL | {"completions": [said, said]})[0]) == ["That is 5."] * 2


def test_tau_bench_is_rated_by_nobody(read, written, caplog):
    chain, = read("tau_bench", TAU)
    rated, = read("agentprocessbench", AGENT)
    assert (chain.prompt, chain.steps, chain.outcome) == (rated.prompt, rated.steps, False)
    assert chain.labels == (None,) * 3
    assert chain.first_error is None
    assert read("agentprocessbench", TAU) == [chain]
    record, = written("agentprocessbench", [chain])
    assert (record["messages"], record["step_labels"], record["final_label"]) == (TAU["traj"], {}, -1)
    assert read("agentprocessbench", record)[0].labels == (None,) * 3
    caplog.clear()
    caplog.set_level("INFO")
    short = TAU | {"traj": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    assert written("trl", read("tau_bench", short)) == [{"prompt": "Q", "completions": ["A"], "labels": [-100.0]}]
    assert "1 records, 1 chains, 1 chains without any label, 0 labelled steps, 1 steps without a label" in caplog.text


def test_ratings_in_a_column_of_parquet_have_every_index(read):
    assert read("agentprocessbench", AGENT | {"step_labels": AGENT["step_labels"] | {"3": None}})[0].labels == (
        1.0, 1.0, 0.0)


def test_arguments_of_a_call_are_whole(read):
    call = {"function": {"name": "search", "arguments": {"q": "x" * 100}}}
    rows = [TAU | {"traj": [{"role": "user", "content": "Q"}, {"role": "assistant", "tool_calls": [call]}]}]
    assert read("tau_bench", *rows)[0].steps[0].calls == (Call("search", f'{{"q": "{"x" * 100}"}}'),)


def test_first_error_formats(read):
    chain, = read("processbench", PROCESS)
    assert (chain.labels, chain.first_error, chain.outcome) == ((1.0, 0.0, None), 1, False)
    chain, = read("processbench", PROCESS | {"label": -1, "final_answer_correct": True})
    assert (chain.labels, chain.first_error, chain.outcome) == ((1.0, 1.0, 1.0), -1, True)
    right = {"mistake_index": None, "answer": "a b "}
    chains = read("bigbench_mistake", MISTAKE, MISTAKE | right)
    assert [chain.first_error for chain in chains] == [1, -1]
    assert [(chain.answer, chain.outcome) for chain in chains] == [("a b", False), ("a b", True)]
    assert texts(chains[0]) == ["a first", "then b"]


def test_a_chain_whose_error_is_a_blank_step_is_left_out_and_counted(read, caplog):
    counts: Counter[str] = Counter()
    assert read("bigbench_mistake", MISTAKE | {"mistake_index": 1}, noted=counts) == []
    assert counts == {"chains whose first wrong step is blank left out": 1}
    assert "chains whose first wrong step is blank left out: 1" in caplog.text


def test_error_steps_of_prmbench_count_from_one(read):
    chain, = read("prmbench", BENCH)
    assert (chain.prompt, chain.labels, chain.first_error) == ("Q", (1.0, 0.0, 0.0), 1)
    assert chain.meta["rest"]["original_process"] == ["1. x", "2. y"]
    chain, = read("prmbench", {"question": "Q", "modified_process": ["x"], "error_steps": [1]})
    assert (chain.prompt, chain.first_error) == ("Q", 0)


def test_error_steps_beyond_the_last_step_mark_nothing_are_counted_and_come_back(read, tmp_path):
    counts: Counter[str] = Counter()
    row = BENCH | {"error_steps": [3, 2, 9]}
    chain, = read("prmbench", row, noted=counts)
    assert chain.labels == (1.0, 0.0, 0.0)
    assert counts == {"error steps beyond the last step left out": 1}
    FORMATS["prmbench"].write(tmp_path / "out.jsonl", [chain])
    assert json.loads((tmp_path / "out.jsonl").read_text())["error_steps"] == [3, 2, 9]


@pytest.mark.parametrize(("neutral", "labels"), [("right", (1.0, 1.0, 0.0)), ("wrong", (0.0, 1.0, 0.0))])
def test_replies_of_tools_are_observations(read, neutral, labels):
    chain, = read("agentprocessbench", AGENT, neutral=neutral)
    call = Call("search", '{"q": "x"}', "nobody", id="c")
    assert chain.prompt == "Be useful.\n\nWho?"
    assert chain.steps == (
        Step("Let me look.", calls=(call,), context=(Message("user", "Well?"),), ref="2"),
        Step("", calls=(replace(call, result="Ann"),), ref="5"), Step("Ann.", ref="7"))
    assert (chain.labels, chain.outcome) == (labels, False)


def test_an_agents_message_without_a_label_is_unlabelled(read):
    chain, = read("agentprocessbench", AGENT | {"step_labels": {"5": -1}})
    assert (chain.labels, chain.first_error) == ((None, 0.0, None), None)


def test_monte_carlo_values_of_a_tree(read):
    counts: Counter[str] = Counter()
    chains = read("math_aps", APS, noted=counts)
    assert [(texts(chain), chain.labels) for chain in chains] == [
        (["other"], (0.0,)), (["first", "half\nmore"], (0.75, 1.0))]
    assert {chain.answer for chain in chains} == {"4"}
    assert counts == {"second values of a prefix left out": 1}


def test_a_tree_of_monte_carlo_values(read, written):
    counts: Counter[str] = Counter()
    chains = read("math_aps", TREE, APS, noted=counts)
    assert [(chain.prompt, texts(chain), chain.labels) for chain in chains[:3]] == [
        ("Q? ", ["first", "half\nmore"], (0.75, 1.0)), ("Q? ", ["first", "first half"], (0.75, 0.25)),
        ("Q? ", ["other"], (0.0,))]
    assert counts == {"second values of a prefix left out": 1}
    assert written("math_aps", chains) == [TREE, APS]
    # What a blank step stands between comes together.
    blank = {"text": "Q?", "mc_value": 1, "children": [{"text": " ", "mc_value": 1, "children": [
        {"text": "a", "mc_value": 0.5}]}]}
    chain, = read("math_aps", TREE | {"reasoning_steps": blank}, noted=counts)
    assert (texts(chain), chain.labels) == (["a"], (0.5,))
    assert counts["steps without text left out, what follows them kept"] == 1


def aps(*prefixes: str) -> dict[str, Any]:
    return {"question": "Q?", "final_answer": "4", "reasoning_steps": [
        {"solution_prefix": "Q?" + prefix, "mc_value": index / 8} for index, prefix in enumerate(prefixes)]}


@pytest.mark.parametrize(("prefixes", "chains"), [
    (["\n\nIt is 4", "\n\nIt is 42"], [["It is 4"], ["It is 42"]]),
    (["\n\nIt is 42", "\n\nIt is 4", "\n\nIt is 4\n\nDone"], [["It is 42"], ["It is 4", "Done"]]),
    # What goes on from the shorter one sorts after its sibling.
    (["\n\nx", "\n\nx\ty", "\n\nx\n\nz"], [["x\ty"], ["x", "z"]]),
    (["\n\nx", "\n\nx more", "\n\nx more \n\nend", "\n\nx more words"],
     [["x"], ["x more", "end"], ["x more words"]]),
    (["\nline\n", "\nline\nnext"], [["line", "next"]]),
])
def test_a_candidate_that_begins_like_another_is_its_sibling(read, written, prefixes, chains):
    found = read("math_aps", aps(*prefixes))
    assert [texts(chain) for chain in found] == chains
    assert written("math_aps", found) == [aps(*prefixes)]


def test_records_of_several_files_are_several(tmp_path):
    """The first record of each file is another one: none loses the labels of a step it seems to share."""
    flat_rows = [flat([], "a0", 1.0), flat(["a0"], "b0", -1.0)]
    for name, rows in (("math_aps", [APS]), ("math_aps", [TREE]), ("prm800k", [NESTED]), ("prm800k_flat", flat_rows)):
        files = [put(tmp_path / f"{index}.jsonl", rows) for index in range(3)]
        chains = [chain for file in files for chain in FORMATS[name].read(file)]
        labels = [[label for chain in labelled_once(part) for label in chain.labels]
                  for part in (chains, FORMATS[name].read(files[0]))]
        assert labels[0] == labels[1] * 3
        assert FORMATS[name].write(tmp_path / "out.jsonl", chains) == 3 * len(rows)


PATHS = [(["a1"], (0.0,), None), (["a0", "b0"], (1.0, 0.0), None), (["a0", "bh", "c0"], (1.0, 1.0, "neutral"), None),
         (["a0", "bh", "c1"], (1.0, 1.0, 1.0), True)]


@pytest.mark.parametrize(("neutral", "value"), [(None, 1.0), ("right", 1.0), ("wrong", 0.0)])
def test_prm800k_is_read_as_the_chains_to_every_candidate(read, neutral, value):
    expected = [(path, tuple(value if label == "neutral" else label for label in labels), outcome)
                for path, labels, outcome in PATHS]
    found = read("prm800k", NESTED, neutral=neutral)
    assert [(texts(chain), chain.labels, chain.outcome) for chain in found] == expected
    assert {chain.answer for chain in found} == {"4"}
    found = read("prm800k_flat", *FLAT, neutral=neutral)
    unrated = (["a0", "bh", "c2"], (1.0, 1.0, None), None)
    assert [(texts(chain), chain.labels, chain.outcome) for chain in found] == [*expected, unrated]
    assert [chain.answer for chain in found] == [None, None, None, "4", None]


def test_shared_steps_can_be_labelled_once(read):
    chains = list(labelled_once(read("prm800k_flat", *FLAT, *(row | {"instruction": "other"} for row in FLAT))))
    assert [chain.labels for chain in chains[:5]] == [
        (0.0,), (1.0, 0.0), (None, 1.0, 1.0), (None, None, 1.0), (None, None, None)]
    # A new problem begins anew, and every rating is there once.
    assert [chain.labels for chain in chains[5:]] == [chain.labels for chain in chains[:5]]
    trl = read("trl", TRL)
    assert list(labelled_once(trl)) == trl


def test_a_part_of_a_tree_is_written_as_that_part(read, written):
    kept = read("prm800k", NESTED)[1:3]
    record, = written("prm800k", kept)
    steps = record["label"]["steps"]
    assert [[c["text"] for c in step["completions"]] for step in steps] == [["a0"], ["b0"], ["c0"]]
    assert [step["chosen_completion"] for step in steps] == [0, None, None]
    assert written("prm800k_flat", read("prm800k_flat", *FLAT)[:2]) == FLAT[:3]


def test_rows_after_a_prefix_nobody_rated(read, written):
    row = flat(["x", "y"], "z", -1.0)
    chains = read("prm800k_flat", row)
    assert [(texts(chain), chain.labels) for chain in chains] == [(["x", "y", "z"], (None, None, 0.0))]
    assert written("prm800k_flat", chains) == [row]


CHAIN = LabelledChain("P", (Step("a"), Step("b")), (1.0, 0.0), "4", False, "elsewhere", {"rest": {"x": 1}, "tree": 3})


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"prmbench", "tau_bench"}))
def test_chains_from_elsewhere_come_back_with_what_the_format_holds(read, written, name):
    right = LabelledChain("P", (Step("a"), Step("c")), (1.0, 1.0), "4", True, "elsewhere")
    back = read(name, *written(name, [CHAIN, right]))
    numbered = name in ("math_shepherd", "openrlhf", "rlhflow")
    assert [(chain.prompt, texts(chain), chain.labels) for chain in back] == [
        ("P", ["Step 1: a", "Step 2: b"] if numbered else ["a", "b"], (1.0, 0.0)),
        ("P", ["Step 1: a", "Step 2: c"] if numbered else ["a", "c"], (1.0, 1.0))]
    if name in ("processbench", "bigbench_mistake", "agentprocessbench", "prm800k", "prm800k_flat", "mr_gsm8k"):
        assert back[1].outcome is True


def test_tool_replies_survive_in_the_agents_format(read, written):
    chain = LabelledChain("P", (Step("call", "reply"), Step("b")), (1.0, None))
    back, = read("agentprocessbench", *written("agentprocessbench", [chain]))
    assert ([replace(step, ref="") for step in back.steps], back.labels) == (list(chain.steps), (1.0, None))


def test_tools_and_scores_that_a_format_has_no_place_for_are_counted(tmp_path):
    noted: Counter[str] = Counter()
    chains = [CHAIN, replace(CHAIN, tools='[{"name": "look"}]'), replace(CHAIN, scores=(None, 0.5), scorer="v")]
    FORMATS["trl"].write(tmp_path / "out.jsonl", chains, noted=noted)
    assert noted == {"chains whose tools are left out": 1, "chains whose scores by a model are left out": 1}


def test_labels_after_a_first_error_are_counted(written, read, caplog):
    chain = LabelledChain("P", (Step("a"), Step("b"), Step("c")), (1.0, 0.0, 1.0))
    record, = written("processbench", [chain])
    assert (record["label"], record["final_answer_correct"]) == (1, None)
    assert "1 records of processbench; labels after a first wrong step left out: 1" in caplog.text


SOFT = LabelledChain("P", CHAIN.steps, (1.0, 0.75), "4")
OPEN = LabelledChain("P", CHAIN.steps, (None, 0.0), "4")
TOOL = LabelledChain("P", (Step("a", "reply"), Step("b")), (1.0, 0.0), "4")


@pytest.mark.parametrize(("name", "chain", "message"), [
    *((name, SOFT, "step 1 has the soft label 0.75")
      for name in sorted(set(EXAMPLES) - {"trl", "math_aps", "openrlhf", "tau_bench"})),
    *((name, OPEN, "step 0 has none")
      for name in ("math_shepherd", "openrlhf", "rlhflow", "paddle", "prmbench", "math_aps")),
    *((name, OPEN, "needs the first wrong step") for name in ("processbench", "bigbench_mistake", "mr_gsm8k")),
    *((name, TOOL, "what a tool replied after step 0")
      for name in sorted(set(EXAMPLES) - {"agentprocessbench", "tau_bench"})),
    *((name, replace(TOOL, steps=(Step("b"), step)), "has no place for what step 1 calls or thinks")
      for step in (Step("", calls=(Call("look"),)), Step("a", reasoning="hm")) for name in ("trl", "processbench")),
    *((name, LabelledChain("P", (Step("a"),), (1.0,)), "needs the reference answer")
      for name in ("math_aps", "bigbench_mistake")),
    ("prmbench", CHAIN, "needs `original_process`"),
    ("tau_bench", CHAIN, "has no place for labels"),
    ("math_shepherd", LabelledChain("книги: Какие?", (Step("a"),), (1.0,)), "this chain's text holds that"),
])
def test_a_format_refuses_what_it_cannot_hold(tmp_path, name, chain, message):
    before = [] if name in ("prmbench", "tau_bench") else [CHAIN]
    with pytest.raises(InputError, match=rf"chain {len(before)} \(prompt '.*{name} .*{message}"):
        FORMATS[name].write(tmp_path / "out.jsonl", [*before, chain])
    assert list(tmp_path.iterdir()) == []


BAD = [
    ("trl", TRL | {"labels": [True]}, "1 labels for 2 completions"),
    ("trl", TRL | {"labels": [1.5, 0]}, "label 0 is 1.5"),
    ("trl", TRL | {"labels": [None, 0]}, "label 0 is null"),
    ("trl", TRL | {"labels": [True, 0.5]}, "mix true and false with soft"),
    ("trl", TRL | {"completions": ["a", None]}, "completions 1 is null"),
    ("trl", TRL | {"completions": [" ", ""]}, "every step is blank"),
    ("trl", {"completions": ["a"], "labels": [True]}, "field prompt is missing"),
    ("math_shepherd", SHEPHERD | {"label": SHEPHERD["label"].replace("+\n", "?\n")}, "part at mark 0"),
    ("math_shepherd", SHEPHERD | {"label": SHEPHERD["label"] + "x"}, "part after the last mark"),
    ("math_shepherd", SHEPHERD | {"input": "no marks"}, "there is no mark"),
    ("math_shepherd", {"input": "Q? Step 1: a ки b", "label": "Q? Step 1: a + b"}, "has no label"),
    ("math_shepherd", {"input": "Round. ки", "label": "Round. +"}, "no step found"),
    ("math_shepherd", {"input": "Q? Step 1: a ки ки", "label": "Q? Step 1: a + -"}, "1 steps are blank"),
    ("processbench", PROCESS | {"label": 3}, "label 3 of 3 steps"),
    ("processbench", PROCESS | {"label": True}, "field label is true, expected int"),
    ("processbench", PROCESS | {"final_answer_correct": 1}, "final_answer_correct is 1, expected bool or null"),
    ("bigbench_mistake", {"input": "x", "steps": ["a"]}, "mistake_index is missing"),
    ("bigbench_mistake", MISTAKE | {"mistake_index": -1}, "mistake_index -1 of 3 steps"),
    ("prmbench", BENCH | {"error_steps": [0]}, "error_steps holds 0"),
    ("prmbench", BENCH | {"error_steps": [True]}, "error_steps holds True"),
    ("agentprocessbench", AGENT | {"step_labels": {"3": 1}}, 'names message "3", which begins no assistant'),
    ("agentprocessbench", AGENT | {"step_labels": {"2": 2}}, "step_labels 2 is 2"),
    ("agentprocessbench", AGENT | {"messages": AGENT["messages"][:2]}, "no assistant message"),
    ("agentprocessbench", AGENT | {"messages": [{"content": "x"}]}, "message 0 is"),
    ("math_aps", APS | {"reasoning_steps": [{"solution_prefix": "R", "mc_value": 1}]}, "does not begin with the quest"),
    ("math_aps", APS | {"reasoning_steps": [{"solution_prefix": "Q?a", "mc_value": 1.2}]}, "mc_value is 1.2"),
    ("math_aps", TREE | {"reasoning_steps": {"text": "first", "mc_value": 1}}, "is .first., expected the question"),
    ("math_aps", TREE | {"reasoning_steps": {"text": "Q?", "children": [{"text": "a", "mc_value": None}]}},
     "reasoning_steps: child 0: mc_value is null"),
    ("math_aps", TREE | {"reasoning_steps": {"text": "Q?", "children": ["a"]}}, "reasoning_steps: field children is"),
    ("rlhflow", {"conversations": FLOW["conversations"][:3]}, "has 3 messages, expected pairs"),
    ("rlhflow", {"conversations": FLOW["conversations"][::-1]}, "expected a text by the user"),
    ("rlhflow", {"conversations": [FLOW["conversations"][0], {"role": "assistant", "content": "?"}]}, "expected . or"),
    ("openrlhf", RLHF | {"value": ["+"]}, "1 labels in value for 2 marks"),
    ("openrlhf", RLHF | {"value": ["+", 0.5]}, "value 1 is 0.5, expected . or -, or numbers"),
    ("openrlhf", SOFT_RLHF | {"labels": [1, 2]}, "labels 1 is 2, expected a number from 0 to 1"),
    ("openrlhf", {"text": SHEPHERD["input"]}, "field value is missing"),
    ("paddle", PADDLE | {"tgt": []}, "2 texts in src and 0 in tgt"),
    ("paddle", PADDLE | {"labels": ["+", "-"]}, "2 labels for 3 responses"),
    ("paddle", PADDLE | {"labels": ["+", "-", 1]}, "label 2 is 1, expected . or -"),
    ("mr_gsm8k", MR | {"model_output_solution_first_error_step": 4}, "first_error_step is 4, expected the number of"),
    ("mr_gsm8k", MR | {"model_output_solution_correctness": "correct"}, "is correct, and .* names a wrong step"),
    ("mr_gsm8k", MR | {"model_output_solution_correctness": "so so"}, "is .so so., expected correct or wrong"),
    ("tau_bench", TAU | {"traj": TAU["traj"][:2]}, "no assistant message"),
    ("trl", TRL | {"prompt": [{"content": "x"}]}, "prompt 0 is .*, expected an object with `role`"),
    ("prm800k", NESTED | {"label": {"steps": [{"completions": [completion("a", 2)]}]}}, "completion 0: rating is 2"),
    ("prm800k", {"question": {"problem": "P"}, "label": {}}, "label: field steps is missing"),
    ("prm800k_flat", FLAT[0] | {"rating": 0.5}, "field rating is 0.5"),
    ("prm800k_flat", FLAT[0] | {"responses": None}, "field responses is null"),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD)
def test_a_bad_record_is_named_by_line_and_field(read, name, row, message):
    with pytest.raises(InputError, match=rf"in\.jsonl:{len(EXAMPLES[name]) + 1}: .*{message}"):
        read(name, *EXAMPLES[name], row)


def test_neutral_is_checked_when_asked(tmp_path):
    with pytest.raises(InputError, match="trl has no neutral ratings"):
        FORMATS["trl"].read(tmp_path / "x", neutral="right")
    with pytest.raises(InputError, match="neutral 'maybe': expected one of right, wrong"):
        FORMATS["prm800k"].read(tmp_path / "x", neutral="maybe")
    with pytest.raises(InputError, match=r"unknown format 'csv'; known: agentprocessbench, .*trl"):
        FORMATS["csv"]


@pytest.mark.parametrize(("labels", "first"), [
    ((1.0, 0.5), -1), ((0.9, 0.4, 0.0), 1), ((1.0, None, 0.0), None), ((1.0, 0.0, None), 1), ((1.0, None), None)])
def test_first_error_of_a_chain(labels, first):
    chain = LabelledChain("p", tuple(Step(str(index)) for index in range(len(labels))), labels)
    assert chain.first_error == first

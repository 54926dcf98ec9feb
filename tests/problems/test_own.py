"""A user's problem file: what is read, refused, dropped, and how it is split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.problems import own
from prm_core.types import Problem


def _file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _rows(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {n} + 1?", "answer": n + 1, **more} for n in range(count)]


def test_a_problem_keeps_everything_it_came_with() -> None:
    solution = "2 + 2 = 4\n\nThe answer is 4"
    record = {"prompt": " 2 + 2? ", "answer": 4, "solution": solution, "level": 3, "meta": {"a": 1}}
    problem = own.parse_problem(record, "f:1")
    assert (problem.domain, problem.prompt, problem.answer) == ("general", "2 + 2?", "4")
    assert problem.meta == {"a": 1, "level": 3, "solution": ["2 + 2 = 4", "The answer is 4"]}
    # The id is the content's.
    assert problem.id == own.parse_problem({"prompt": "2 + 2?", "answer": "4"}, "g:9").id
    assert problem.id != own.parse_problem({"prompt": "2 + 2?", "answer": "5"}, "g:9").id
    assert own.parse_problem({**record, "id": 17}, "f:1").id == "17"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answer": "1"}, "f:3: field prompt is missing"),
        ({"prompt": "a"}, "f:3: field answer is missing"),
        ({"prompt": "  ", "answer": "1"}, "f:3: field prompt is '  '"),
        ({"prompt": "a", "answer": True}, "f:3: field answer is True"),
        ({"prompt": "a", "answer": None}, "f:3: field answer is None"),
        ({"prompt": "a", "answer": "1", "solution": [1]}, "f:3: field solution must be"),
        ({"prompt": "a", "answer": "1", "solution": "\n"}, "f:3: field solution holds no step"),
        ({"prompt": "a", "answer": "1", "meta": "x"}, "f:3: field meta must be an object"),
        ({"prompt": "a", "answer": "1", "meta": {"solution": 5}}, "f:3: field meta.solution must be"),
        ({"prompt": "a", "answer": "1", "domain": "arithmetic"}, "f:3: domain 'arithmetic' needs more"),
    ],
)
def test_bad_lines_are_named(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        own.parse_problem(record, "f:3")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("domain", ["own", ["Algebra", "Sets"], "general", None])
def test_any_domain_is_taken_and_kept(domain: Any) -> None:
    problem = own.parse_problem({"prompt": "a", "answer": "1", "domain": domain}, "f:1")
    assert problem.domain == "general"
    assert problem.meta == ({} if domain in ("general", None) else {"domain": domain})
    # The same problem, whatever its kind is called.
    assert problem.id == own.parse_problem({"prompt": "a", "answer": "1"}, "f:1").id


def test_a_solution_in_meta_is_read_as_steps() -> None:
    assert own.parse_problem({"prompt": "a", "answer": "1", "meta": {"solution": "x\ny"}}, "f:1").meta == {
        "solution": ["x", "y"]}


def test_what_was_dropped_left_out_and_short_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rows = [*_rows(60), {"prompt": "What is 0 + 1?", "answer": "1"}, {"question": "What is 1 + 1?", "answer": "3"},
            {"id": "long", "prompt": "1 apple, " * 20, "answer": "1"},
            {"id": "fits", "prompt": "1 apple, " * 6 + "2", "answer": "1", "domain": "own", "solution": "So it is"}]
    user = own.read_problems(_file(tmp_path, rows), max_length=16)
    assert (len(user.problems), user.duplicates, user.conflicts, user.domain) == (61, 2, 1, "general")
    assert user.too_long == {"long": f"{tmp_path / 'mine.jsonl'}:63"}
    assert len(own.read_problems(_file(tmp_path, rows)).problems) == 62
    own.describe(user)
    counts = {split: sum(own.split_of(problem.id) == split for problem in user.problems) for split in own.SPLITS}
    for said in (
        "61 problems: prompt from `prompt`; answer from `answer`; solution from `solution` in 1; id from `id` in 1",
        f"train {counts['train']}, dev {counts['dev']}, test {counts['test']}",
        f"test holds {counts['test']} problems: a share measured on so few is known to ± ",
        "2 records dropped, their prompt had come before (1 of them with another answer)",
        "1 problems left out: longer than the models' context (encoder.max_length): long (",
        "domains of your own (own: 1) are read as general",
        "1 of 1 solutions do not end with their answer", "will not state theirs: fits",
    ):
        assert said in caplog.text
    with pytest.raises(InputError, match=r"62 more are longer than the context of 4 tokens"):
        own.read_problems(_file(tmp_path, rows), max_length=4)


def test_an_id_of_two_problems_is_refused(tmp_path: Path) -> None:
    rows = [*_rows(60), {"prompt": "x?", "answer": "1", "id": "a"}, {"prompt": "y?", "answer": "1", "id": "a"}]
    with pytest.raises(InputError, match=r"mine\.jsonl:62: id 'a' was given .* at .*mine\.jsonl:61"):
        own.read_problems(_file(tmp_path, rows))


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match="holds no records"):
        own.read_problems(path)


def test_too_few_problems_for_every_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 problems are too few, none of them falls into .*; give 50 or more"):
        own.read_problems(_file(tmp_path, _rows(1)))


@given(st.sets(st.text(min_size=1), min_size=1, max_size=50), st.text(min_size=1))
def test_a_problem_keeps_its_split_when_the_file_grows(ids: set[str], other: str) -> None:
    before = {name: own.split_of(name) for name in ids}
    after = {name: own.split_of(name) for name in ids | {other}}
    assert before == {name: after[name] for name in ids}


def test_splits_are_80_10_10() -> None:
    splits = [own.split_of(str(n)) for n in range(10_000)]
    shares = {split: splits.count(split) / len(splits) for split in own.SPLITS}
    assert shares == pytest.approx({"train": 0.8, "dev": 0.1, "test": 0.1}, abs=0.01)


def test_written_splits_are_disjoint_and_complete(tmp_path: Path) -> None:
    user = own.read_problems(_file(tmp_path, _rows(100)))
    counts = own.write_data(user, tmp_path / "data")
    written = {split: store.read_jsonl(Problem, tmp_path / "data" / f"{split}.jsonl") for split in counts}
    assert {split: len(rows) for split, rows in written.items()} == counts
    assert sorted(p.id for rows in written.values() for p in rows) == sorted(p.id for p in user.problems)
    assert all(own.split_of(p.id) == split for split, rows in written.items() for p in rows)
    assert (tmp_path / "data" / "warmup.jsonl").read_text() == ""
    assert sorted(p.name for p in (tmp_path / "data" / "human").iterdir()) == sorted(own.HUMAN_FILES)


@pytest.mark.parametrize(("enough", "kept"), [(True, False), (False, True)])
def test_own_solutions_train_the_base_models_when_there_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: bool, kept: bool
) -> None:
    user = own.read_problems(_file(tmp_path, _rows(100, solution=["a", "b"])))
    train = sum(own.split_of(problem.id) == "train" for problem in user.problems)
    monkeypatch.setattr(own, "MIN_WARMUP_PROBLEMS", train if enough else train + 1)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "warmup.jsonl").write_text("embedded\n")
    own.write_data(user, folder)
    warmup, training = (folder / name for name in ("warmup.jsonl", "train.jsonl"))
    assert (warmup.read_text() == "embedded\n") is kept
    # Held-out problems never train anything.
    assert (warmup.read_bytes() == training.read_bytes()) is not kept

"""prm_core/serving/drift/samples.py: what is kept of a trajectory, by which chance, and which files are read."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from prm_core.serving.drift.samples import drawn, first_of_each, independent, read, read_window, sample, write
from prm_core.types import Call, Step
from tests.builders.drift import served

STEPS = (Step("look it up", agent="ann", calls=(Call("search"), Call("look"))), Step("7"))


def kept(**given):
    return sample("q?", STEPS, [0.9, 0.3], time=5.0, threshold=0.5, renderer=2, **given)


def test_figures_names_and_digests_are_kept_and_no_text() -> None:
    one = kept(raw=[0.8, 0.4], in_domain=True)
    assert (one.scores, one.raw, one.first_error, one.prompt_length) == ([0.9, 0.3], [0.8, 0.4], 1, 2)
    assert (one.tools, one.agents, one.in_domain, one.text) == (["search", "look"], ["ann", ""], True, None)
    assert one.lengths[1] == 1
    assert one.prefixes[0] == sample("q?", STEPS[:1], [0.9], time=0.0, threshold=0.5, renderer=2).prefixes[0]
    assert "look it up" not in json.dumps([one.prompt, one.prefixes])


def test_only_scored_steps_count() -> None:
    one = sample("q?", STEPS, [0.9], time=0.0, threshold=0.95, renderer=2)
    assert (len(one.prefixes), one.first_error, one.agents) == (1, 0, ["ann"])


def test_texts_are_kept_where_they_are_asked_for() -> None:
    text = json.loads(kept(texts=True).text)
    assert text["prompt"] == "q?"
    assert [step["text"] for step in text["steps"]] == ["look it up", "7"]


def test_a_file_gives_back_what_was_written(tmp_path) -> None:
    written = [kept(texts=True), served("other", [0.5], chance=0.25)]
    write(tmp_path / "a.parquet", written, {"traffic": "ours"})
    assert read(tmp_path / "a.parquet") == (written, {"traffic": "ours"})


def test_questions_are_drawn_whole_by_day_and_by_their_chance() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()
    first = [drawn(f"q{number}", noon, 0.3) for number in range(2000)]
    assert 0.26 < sum(first) / 2000 < 0.34
    assert first == [drawn(f"q{number}", noon + 11 * 3600, 0.3) for number in range(2000)]
    tomorrow = [drawn(f"q{number}", noon + 86400, 0.3) for number in range(2000)]
    assert 0.05 < sum(a and b for a, b in zip(first, tomorrow, strict=True)) / 2000 < 0.13
    assert (drawn("q", noon, 0.0), drawn("q", noon, 1.0), drawn("\ud800", noon, 1e-9)) == (False, True, False)


def test_a_window_holds_its_time_and_names_what_is_broken(tmp_path) -> None:
    begins = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    for name, times in (("20260101T000000-1-0", (0, 50)), ("20260101T000100-1-1", (60, 119)),
                        ("20260101T010000-1-2", (3600,))):
        write(tmp_path / f"{name}.parquet", [served(f"{name} {at}", [0.9], time=begins + at) for at in times])
    whole = (tmp_path / "20260101T000100-1-1.parquet").read_bytes()
    (tmp_path / "20260101T000101-1-3.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / ".20260101T000102-1-4.parquet.tmp").write_bytes(whole[:9])
    (tmp_path / "notes.parquet").write_bytes(b"")
    window = read_window(tmp_path, begins + 50, begins + 119, longest=60)
    assert [one.time - begins for one in window.samples] == [50, 60]
    assert window.broken == ["20260101T000101-1-3.parquet"]
    assert read_window(tmp_path / "none", 0, 1, 1).samples == []


def test_a_foreign_file_is_named(tmp_path, caplog) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1]}), tmp_path / "20260101T000000-1-0.parquet")
    begins = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert read_window(tmp_path, begins, begins + 9, 1).broken
    assert "holds no samples of served traffic (no column time)" in caplog.text


@pytest.mark.parametrize("seed", range(3))
def test_of_a_question_one_finished_trajectory_is_taken(seed) -> None:
    steps = [Step("a"), Step("b"), Step("c")]

    def asked(count, last=None):
        return sample("q", [*steps[: count - 1], last or steps[count - 1]], [0.5] * count, time=0.0, threshold=0.5,
                      renderer=2)

    branch = asked(3, Step("other"))
    grown = [asked(1), asked(2), asked(3), branch, asked(2)]
    (one,) = independent(grown, seed)
    assert one in (grown[2], branch)
    assert independent([*grown, served("p", [0.1])], seed)[1:] == [served("p", [0.1])]
    assert independent([], seed) == []


def test_a_trajectory_is_as_likely_as_it_came_up() -> None:
    """Nine of ten draws of a policy are the same."""
    samples = [served(f"question {number}", [0.9], length=20 if draw else 10) for number in range(300)
               for draw in range(10)]
    rare = sum(one.lengths == [10] for one in independent(samples, 0))
    # Binomial(300, 0.1), where one of two different ones would be half.
    assert 12 <= rare <= 52
    assert first_of_each(samples) == samples[::10]

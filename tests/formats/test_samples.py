"""One small real file of each format: read, written back as it was, scored, and every score found at its source id."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from prm_core.cli.scoring.score import score
from prm_core.formats import FORMATS
from prm_core.scoring.scorer import ChainScore
from prm_core.types import Step
from tests.builders.scorer import FakeScorer, fake_model_folder

NOT_ANSWERED = {"results that answer no call, read as observations": 1, "calls without a result": 1}
# File, format, the ids of the steps of each chain, what is left out.
SAMPLES: list[tuple[str, str, list[list[str]], dict[str, int]]] = [
    ("agentprocessbench_hotpotqa_1.json", "agentprocessbench", [["2"]], {}),
    ("atif_v1.7_agentpile.json", "atif", [["3", "4"]], {}),
    ("atif_v1.8_subagent_scores.json", "atif", [["2", "3"], ["2"]], {}),
    ("inspect_ai_log_formats.json", "inspect", [["2"]], {}),
    ("mini_swe_agent_local.traj.json", "mini_swe_agent", [["2", "4"]], {}),
    ("mlflow_trace_3.17.2.json", "mlflow_trace", [["f932efee4e15206e"]], {}),
    ("openai_chat_parallel_tools.json", "chat", [["2", "5"]], {}),
    ("openhands_events_v1_49_4.json", "openhands", [["515bcb56-11d3-441c-b04f-5172e764821e"]], NOT_ANSWERED),
    ("otlp_genai_agentpile.json", "otlp", [["db1c8e8a59bd7819", "917857b185659ee1"]], {}),
]


def sample(name: str) -> Path:
    path = Path(os.environ.get("PRM_SHARED_DATA") or "").parent / "samples" / name
    if not os.environ.get("PRM_SHARED_DATA") or not path.is_file():
        pytest.skip(f"beside the folder that PRM_SHARED_DATA names there is no samples/{name}")
    return path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    class ByText(FakeScorer):
        """Scores a step by its text, so that no two steps of a sample have one score."""

        def _score(self, prompt: str, steps: Sequence[Step]) -> ChainScore:
            scores = tuple(len(step.text) % 97 / 128 for step in steps)
            return ChainScore(scores, scores, 0)

    monkeypatch.setattr("prm_core.scoring.foreign.load_any_scorer", lambda folder, **_: ByText())
    return str(fake_model_folder(tmp_path / "prm"))


@pytest.mark.shared
@pytest.mark.parametrize(("name", "kind", "refs", "left_out"), SAMPLES)
def test_a_sample_comes_back_with_every_score_at_its_id(
    tmp_path: Path, model: str, name: str, kind: str, refs: list[list[str]], left_out: dict[str, int]
) -> None:
    path, noted = sample(name), Counter[str]()
    chains = list(FORMATS[kind].read(path, noted=noted))
    assert ([[step.ref for step in chain.steps] for chain in chains], noted) == (refs, left_out)
    FORMATS[kind].write(tmp_path / "same.json", chains)
    given = json.loads(path.read_text("utf-8"))
    assert json.loads((tmp_path / "same.json").read_text("utf-8")) == (given if isinstance(given, list) else [given])
    # Scored with the command, into lines and into the records.
    score(path, model, tmp_path / "lines.jsonl", from_format=kind)
    score(path, model, tmp_path / "scored.json", from_format=kind, to_format=kind)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text("utf-8").splitlines()]
    assert [line["step_refs"] for line in lines] == refs
    expected = [dict(zip(line["step_refs"], line["step_scores"], strict=True)) for line in lines]
    back = list(FORMATS[kind].read(tmp_path / "scored.json"))
    assert [dict(zip((step.ref for step in chain.steps), chain.scores, strict=True)) for chain in back] == expected
    assert {chain.scorer for chain in back} == {FakeScorer.version}
    assert [(chain.steps, chain.labels) for chain in back] == [(chain.steps, chain.labels) for chain in chains]


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mlflow_trace_3.17.2.json", "otlp_genai_agentpile.json"])
def test_a_trace_s_scores_are_events_on_its_spans(tmp_path: Path, model: str, name: str) -> None:
    kind, refs = next((kind, refs) for file, kind, refs, _ in SAMPLES if file == name)
    score(sample(name), model, tmp_path / "events.jsonl", from_format=kind, to_format="evaluation_events")
    (request,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text("utf-8").splitlines()]
    events = request["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert [event["spanId"] for event in events] == refs[0]


@pytest.mark.shared
def test_agentprocessbench_keeps_its_three_values_and_every_score(tmp_path: Path, model: str) -> None:
    path = Path(os.environ.get("PRM_SHARED_DATA") or "") / "agentprocessbench" / "hotpotqa_first100.jsonl"
    if not os.environ.get("PRM_SHARED_DATA") or not path.is_file():
        pytest.skip("PRM_SHARED_DATA names no folder with agentprocessbench/hotpotqa_first100.jsonl")
    score(path, model, tmp_path / "scored.jsonl", from_format="agentprocessbench", to_format="agentprocessbench")
    before, after = ([json.loads(line) for line in file.read_text("utf-8").splitlines()]
                     for file in (path, tmp_path / "scored.jsonl"))
    assert sum(rating == 0 for row in before for rating in row["step_labels"].values()) > 0
    scores = [row.pop("step_scores") for row in after if row.pop("scored_by") == FakeScorer.version]
    assert after == before
    assert [set(given) for given in scores] == [set(row["step_labels"]) for row in before]

"""`prm drift` from served traffic to a new calibration: an alarm, what it stops, review, and the version it comes to.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import yaml

from prm_core import cli
from prm_core import config as configuration
from prm_core.cli.scoring.drift import calibrate_anew, check_window, review_folder
from prm_core.errors import InputError
from prm_core.models.loading import model_version
from prm_core.platform import store, tracking
from prm_core.review.files import parse_answer, read_queue
from prm_core.review.importing import import_answers
from prm_core.review.session import HUMAN, QUEUE, Board, generated
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.conformal import FILE as PROMISES
from prm_core.scoring.conformal import Alarm, Promises
from prm_core.serving import model_registry
from prm_core.serving.drift import recalibrate
from prm_core.serving.drift.reference import Reference
from prm_core.serving.drift.samples import STAMP, sample, write
from prm_core.serving.drift.trust import TAG, read_alarms
from prm_core.serving.promotion import promote
from prm_core.stages.base import execute
from prm_core.types import Step, StepLabel
from tests import ROOT
from tests.builders.drift import evaluated
from tests.builders.quality import label
from tests.builders.scorer import FakeScorer, fake_model_folder

pytest.importorskip("river")
MODEL = "models:/prm/1"


@pytest.fixture(scope="module")
def patched() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("prm_core.scoring.scorer.load_scorer", lambda folder, **_: FakeScorer())
        patch.setattr(recalibrate, "load_scorer", lambda folder, **_: FakeScorer())
        yield


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, patched: None) -> Path:
    """One with a registered version, whose calibration was measured on 40 trajectories."""
    root = tmp_path_factory.mktemp("workspace")
    raw = configuration.read_yaml(ROOT / configuration.PARAMS_FILE)
    raw["calibrate"]["min_labels"], raw["drift"] = 10, {"min_questions": 20, "texts": True, "review": 30}
    (root / configuration.PARAMS_FILE).write_text(yaml.safe_dump(raw))
    store.write_json(root / "artifacts/evaluate/metrics.json", {
        "test/prm/first_error_f1": 90.0, "test/prm/first_error_f1_low": 88.0, "test/prm/ece": 0.03})
    Promises(alarm=Alarm(0.05, 0.9, 99, 0.5)).write(root / "artifacts/evaluate/promises.json")
    evaluated(root, questions=20)
    store.write_shard(root / "artifacts/calibrate/training_set", 0, StepLabel, [label("gen-0", 0)])
    fake_model_folder(root / "artifacts/train_prm/prm")
    execute("register", root)
    return root


def serve(workspace: Path, name: str, steps: list[str], count: int = 40, chance: float = 0.5) -> None:
    """Samples of a minute ago, of questions like those of the evaluation."""
    version = model_version(str(model_registry.reward_model_folder(MODEL, workspace)))
    scores = [0.2 if "wrong" in step or "answer" in step else 0.9 for step in steps]
    begins = time.strftime(STAMP, time.gmtime(time.time() - 60))
    write(workspace / f"served/samples/{begins}-1-{name}.parquet", [
        sample(f"question {name} {number % 20}" + "?" * (number // 20), [Step(step) for step in steps], scores,
               time=time.time() - 60, threshold=0.5, renderer=1, source=MODEL, version=version, chance=chance,
               raw=scores, in_domain=True, texts=True) for number in range(count)])


def test_without_traffic_nothing_is_compared_and_nothing_changes(workspace: Path) -> None:
    found, steps = check_window(workspace, MODEL, "2h")
    assert (found.alarm, steps) == (None, 0)
    assert "0 questions in the window, 40 in the reference, and drift.min_questions is 20" in str(found)
    assert "samples holds no sample of this time" in str(found)


def test_a_model_without_a_reference_is_told_what_to_do(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no reference.parquet, so there is nothing to compare"):
        check_window(workspace, str(fake_model_folder(tmp_path / "model")), None)


@pytest.fixture(scope="module")
def drifted(workspace: Path) -> str:
    """The alarm of a window after a quiet one."""
    serve(workspace, "dev", ["3 + 4 = 7.", "The answer is 7."], count=20)
    quiet, _ = check_window(workspace, MODEL, "2h")
    assert quiet.alarm is None, quiet
    assert "no drift; of its verdicts on steps 85.0%" in str(quiet)
    serve(workspace, "new", ["a longer step than before", "another wrong one", "and one more"], count=40)
    found, steps = check_window(workspace, MODEL, "2h")
    assert found.alarm is not None
    # 30 of 60 trajectories are drawn, of two or three steps.
    assert steps == len(read_queue(review_folder(workspace) / QUEUE)) >= 60
    return found.alarm


def test_an_alarm_is_in_the_store_the_registry_and_the_file_of_servers(workspace: Path, drifted: str) -> None:
    client = tracking.connect(workspace)
    runs = client.search_runs([tracking.experiment_id(client, workspace)], "tags.stage = 'drift'")
    assert [run.data.metrics["alarm"] for run in runs] == [1.0, 0.0]
    assert runs[0].data.metrics["p"] <= 0.01 < runs[1].data.metrics["p"]
    assert runs[0].data.tags["model"] == MODEL
    assert {one.path for one in client.list_artifacts(runs[0].info.run_id)} == {"drift.html", "drift.json"}
    page = Path(client.download_artifacts(runs[0].info.run_id, "drift.html")).read_text()
    assert page.count("<svg") >= 4
    assert "Served traffic against what the model was calibrated on" in page
    assert client.get_model_version("prm", "1").tags[TAG] == f"traffic has drifted: {drifted}"
    (alarm,) = read_alarms(workspace / "served").values()
    assert alarm.reason == drifted


def test_a_stale_version_is_not_promoted(workspace: Path, drifted: str) -> None:
    config = configuration.load(workspace)
    with pytest.raises(InputError, match=r"prm version 1 is not promoted, its calibration is stale: traffic has "
                                         r"drifted: .*`prm drift --recalibrate`"):
        promote(workspace, config.promote, config.drift)


def test_an_alarm_is_one_line_and_exit_code_1(workspace: Path, drifted: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["prm", "drift", "--model", MODEL, "--since", "2h", "--workspace", str(workspace)])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    told = capsys.readouterr()
    assert told.err.splitlines()[-1] == f"stopped: served traffic has drifted: {drifted}"
    assert f"steps wait for review: prm review --workspace {workspace}/served/review" in told.out


def test_drawn_steps_have_what_a_reviewer_needs_and_their_chance(workspace: Path, drifted: str) -> None:
    rows = read_queue(review_folder(workspace) / QUEUE)
    assert {row["chance"] for row in rows} == {0.5 * 30 / 60}
    first = next(row for row in rows if row["step_index"] == 1 and "longer" in row["steps_before"][0])
    assert (first["step"], first["steps_before"]) == ("another wrong one", ["a longer step than before"])
    assert Board(review_folder(workspace)).unanswered() == len(rows)


def test_too_few_verdicts_are_refused(workspace: Path, drifted: str) -> None:
    with pytest.raises(InputError, match=r"people judged 0 served trajectories since the last calibration"):
        calibrate_anew(workspace, MODEL, "2h")


def test_what_people_say_becomes_a_version_that_may_be_promoted(workspace: Path, drifted: str) -> None:
    folder, config = review_folder(workspace), configuration.load(workspace)
    rows = read_queue(folder / QUEUE)
    # Of steps that look right four in five are, of the others one in five.
    answers = [parse_answer({**row, "is_correct": (row["probability"] > 0.5) == (number % 5 > 0)}, "here", "eve")
               for number, row in enumerate(rows)]
    import_answers(answers, folder / HUMAN, generated(folder))
    uri = calibrate_anew(workspace, MODEL, "2h")
    assert uri == "models:/prm/2"
    client = tracking.connect(workspace)
    version = client.get_model_version("prm", "2")
    assert version.tags["recalibrated_from"] == MODEL
    assert TAG not in version.tags
    assert float(version.tags[model_registry.ECE]) < 0.2
    assert str(model_registry.version_by_alias(client, "prm", "challenger").version) == "2"
    made = model_registry.reward_model_folder(uri, workspace)
    calibrator = Calibrator.from_dict(store.read_json(made / "calibrator.json"))
    low, high = calibrator.apply([0.1, 0.9])
    assert 0.05 < low < 0.5 < high < 0.95
    assert not (made / PROMISES).exists()
    reference = Reference.load(made)
    assert len(reference.samples) == 60
    assert {one.text for one in reference.samples} == {None}
    assert max(score for one in reference.samples for score in one.scores) == pytest.approx(high)
    done = promote(workspace, config.promote.__class__(max_ece=0.5), config.drift, uri)
    assert (done.version, done.moved) == ("2", True)


def test_verdicts_count_once(workspace: Path) -> None:
    """Those that made the version are older than its reference."""
    with pytest.raises(InputError, match=r"the window can be no reference: 0 questions"):
        calibrate_anew(workspace, "models:/prm/2", "2h")


def test_a_version_that_does_not_exist_is_not_promoted(workspace: Path) -> None:
    config = configuration.load(workspace)
    for model in ("models:/prm/99", "models:/prm@champion", "prm"):
        with pytest.raises(InputError, match=f"--model {model}: .* has no such version"):
            promote(workspace, config.promote, config.drift, model)

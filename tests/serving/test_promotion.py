"""prm_core/serving/promotion.py: the gate's decisions, and what moves in the registry when it holds or refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from prm_core import config as configuration
from prm_core.config import PromoteConfig
from prm_core.errors import GateError, InputError
from prm_core.platform import store, tracking
from prm_core.serving import model_registry
from prm_core.serving.promotion import ECE, F1, decide, promote
from tests import ROOT

CONFIG = PromoteConfig(max_ece=0.10)


def tags(f1: float | str = 90.0, low: float | str = 88.0, ece: float | str = 0.05, data: str = "d") -> dict[str, str]:
    return {F1: str(f1), f"{F1}_low": str(low), f"{F1}_high": "95", ECE: str(ece), "data_hash": data}


@pytest.mark.parametrize(
    ("challenger", "champion", "passed", "reason"),
    [
        (tags(), None, True, "no champion yet"),
        (tags(ece=0.10), None, True, "no champion yet"),
        (tags(ece=0.1001), None, False, "above the limit promote.max_ece 0.1000"),
        (tags(f1=91), tags(f1=90), True, "not below"),
        (tags(f1=88.0), tags(low=88.0), True, "not below"),
        (tags(f1=87.9), tags(low=88.0), False, "87.9000 is below 88.0000"),
        (tags(f1=99, ece=0.2), tags(), False, "above the limit"),
        ({ECE: "0.05"}, None, False, f"no {F1}"),
        ({F1: "90"}, tags(), False, f"no {ECE}"),
        (tags(f1="nan"), None, False, f"no {F1}"),
        (tags(ece="nan"), None, False, f"no {ECE}"),
        (tags(f1="good"), None, False, f"no {F1}"),
        (tags(), {F1: "90", ECE: "0.05"}, False, f"champion has no {F1}_low"),
        (tags(), tags(low="nan"), False, f"champion has no {F1}_low"),
        (tags(data="other"), tags(), True, "different data"),
        (tags(f1=1, data="other"), tags(), False, "different data"),
    ],
)
def test_gate(challenger, champion, passed, reason):
    decision = decide(challenger, champion, max_ece=0.10)
    assert (decision.passed, reason in decision.reason) == (passed, True), decision

pytestmark = pytest.mark.usefixtures("quick_store")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture
def registered(workspace, monkeypatch, request):
    """A function that registers a version in a model of this test's own, as the register stage does."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = tracking.connect(workspace)
    name = request.node.name

    def register(version_tags: dict[str, str]) -> str:
        run = client.create_run(tracking.experiment_id(client, workspace))
        logged = client.create_logged_model(run.info.experiment_id, source_run_id=run.info.run_id)
        version = model_registry.add_version(workspace, name, logged.model_id, version_tags)
        record = {"name": name, "version": str(version.version), "run_id": run.info.run_id, "tags": version_tags}
        store.write_json(workspace / "artifacts" / "register" / "model_version.json", record)
        return record["version"]

    register.client, register.name = client, name
    return register


def champion(registered) -> str | None:
    found = model_registry.version_by_alias(registered.client, registered.name, "champion")
    return None if found is None else str(found.version)


def test_first_version_is_promoted_and_says_who_when_why(workspace, registered):
    assert champion(registered) is None
    version = registered(tags())
    done = promote(workspace, CONFIG)
    assert (done.version, done.moved, done.previous) == (version, True, None)
    assert champion(registered) == version
    found = registered.client.get_model_version(registered.name, version).tags
    assert found["promoted_by"] == tracking.user()
    assert found["promoted_at"].endswith("+00:00")
    assert "no champion yet" in found["promoted_because"]
    assert found["promoted_over"] == "none"


def test_again_says_it_is_the_champion_already(workspace, registered):
    version = registered(tags())
    promote(workspace, CONFIG)
    done = promote(workspace, CONFIG)
    assert (done.version, done.moved) == (version, False)
    assert champion(registered) == version


def test_refusal_leaves_the_champion_and_names_the_figures(workspace, registered):
    first = registered(tags(f1=90, low=88))
    promote(workspace, CONFIG)
    second = registered(tags(f1=80))
    with pytest.raises(GateError, match=rf"version {second} is not promoted: .*80\.0000 is below 88\.0000.* version "
                                        rf"{first} stays champion"):
        promote(workspace, CONFIG)
    assert champion(registered) == first
    assert "promoted_by" not in registered.client.get_model_version(registered.name, second).tags


def test_better_version_takes_over(workspace, registered):
    first = registered(tags(f1=90, low=88))
    promote(workspace, CONFIG)
    second = registered(tags(f1=89))
    done = promote(workspace, CONFIG)
    assert (done.version, done.previous) == (second, first)
    assert champion(registered) == second


def test_version_this_store_does_not_know(workspace, registered):
    registered(tags())
    path = workspace / "artifacts" / "register" / "model_version.json"
    record = store.read_json(path)
    for wrong in ({"version": "99"}, {"name": "no_such_model"}, {"run_id": "0" * 32}):
        store.write_json(path, {**record, **wrong})
        with pytest.raises(InputError, match=r"is not in sqlite:.*MLFLOW_TRACKING_URI"):
            promote(workspace, CONFIG)
    assert champion(registered) is None


def test_nothing_registered_here(tmp_path):
    with pytest.raises(InputError, match=r"model_version\.json: no such file"):
        promote(tmp_path, CONFIG)


def test_command_says_what_happened(workspace, registered, capsys):
    from prm_core.cli.promote import promote as command

    root = ROOT
    store.write_text(workspace / configuration.PARAMS_FILE, (root / configuration.PARAMS_FILE).read_text())
    version = registered(tags())
    command(workspace)
    assert f"{registered.name} version {version} is now champion: there is no champion yet" in capsys.readouterr().out
    command(workspace)
    assert "it is the champion already" in capsys.readouterr().out

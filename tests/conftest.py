"""What every test runs under: the project's environment, with stores of its own instead of the user's."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from prm_core.platform import environment
from tests.builders import tracking_store, warm_dvc, warm_python

# Before anything imports Prefect or MLflow.
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL", "PRM_PARENT_RUN_ID"):
    os.environ.pop(_name, None)
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prm-tests-prefect-")
environment.apply()
# Each of several workers has a core; two threads apiece would wait for each other. What is forked elsewhere happens in
# the test's own process, where its stand-ins can note it.
os.environ["OMP_NUM_THREADS"] = "1"

# Machines differ and CI is slow; a slow example is no failure. Half of Hypothesis' own number: each run draws others,
# and what has failed once is tried again (.hypothesis).
settings.register_profile("project", deadline=None, max_examples=50)
settings.load_profile("project")


# What imports leave behind stays to the end. Looked through again with every collection of garbage, above all the
# explicit ones of accelerate and the samplers, it took a fifth of the suite's time.
@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _imports_are_no_garbage() -> Iterator[None]:
    """Modules imported by the tests of a file, too."""
    yield
    gc.collect()
    gc.freeze()


# Before the first test starts threads, which a fork would leave without.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop() -> Iterator[object]:
    with warm_python.forking():
        return (yield)


@pytest.fixture(scope="module")
def quick_prm() -> Iterator[None]:
    """`prm` starts at once, with all that this process had imported before its tests."""
    with warm_python.commands():
        yield


@pytest.fixture(scope="session")
def quick_dvc() -> Iterator[None]:
    """`python -m dvc` starts at once."""
    with warm_dvc.started():
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_store() -> Iterator[None]:
    """A workspace's MLflow database is there at once."""
    with tracking_store.copied():
        yield


# A worker that comes to one of these last works on alone; with --no-loadscope-reorder files go out in this order. The
# browser waits a lot, as the flows do: beside them a core would be idle.
SLOWEST_FIRST = (
    "flows/test_pipeline.py", "training/policy/test_loop.py", "labeling/validation/test_checks.py",
    "labeling/validation/test_drift.py", "labeling/strategies/test_judge.py", "training/reward/test_loop.py",
    "stages/test_base.py", "sampling/test_sampler.py", "review/test_page.py", "stages/test_graph.py",
    "test_bare_machine.py", "problems/test_prepare.py", "flows/test_server.py", "formats/test_files.py",
    "training/reward/test_tree_loss.py", "scoring/test_implicit.py", "training/test_warmup.py", "stages/test_label.py",
    "training/reward/test_recipe.py", "serving/test_promotion.py", "maths/test_readings.py",
    "scoring/test_broken_folders.py", "formats/test_mlflow_traces.py", "serving/test_http.py",
    "scoring/test_reward.py", "stages/test_kill_resume.py", "cli/test_train.py",
    "labeling/strategies/test_verifier.py", "stages/test_evaluate.py", "platform/test_workers.py",
    "platform/tracking/test_tracking.py", "evaluation/report/test_search_trees.py", "test_docs.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: number for number, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))

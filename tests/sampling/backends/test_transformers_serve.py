"""The real `transformers serve` with a policy of seconds: rows as in this process, and disobedience found out."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.import_utils import is_serve_available

from prm_core.config import Config
from prm_core.domains import DOMAINS, arithmetic
from prm_core.errors import InputError
from prm_core.models.saving import save_showing_marks
from prm_core.sampling.backends import policy_for
from prm_core.sampling.policy import Policy, load_policy
from prm_core.sampling.rollouts import sample_trajectories
from prm_core.sampling.sampler import Prefix
from tests.builders import taught
from tests.builders.quality import make_config

pytestmark = pytest.mark.skipif(not is_serve_available(), reason="transformers[serving] is not installed")
PROBLEMS = arithmetic.make_problems("test", 3, 5)


@contextmanager
def serve(folder: Path, **options: Any) -> Iterator[str]:
    """The server's base URL; it runs in threads of this process."""
    from transformers.cli.serve import Serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Serve(str(folder), host="127.0.0.1", port=port, device="cpu", non_blocking=True, log_level="error",
                   **options)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except urllib.error.URLError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill_server()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy and the copy of it for a server that answers in text."""
    own = taught.save_policy(tmp_path_factory.mktemp("taught"))
    copy = tmp_path_factory.mktemp("copies") / "served"
    save_showing_marks(str(own), "<|step|>", copy)
    return own, copy


def config(url: str, model: Path) -> Config:
    return make_config(sampling={"backend": "server", "server": "transformers", "endpoint": url, "model": str(model)})


def rows(policy: Policy, temperature: float, samples: int) -> list[Any]:
    found = sample_trajectories(policy, PROBLEMS, DOMAINS, samples=samples, temperature=temperature,
                                max_new_tokens=40, batch_size=8, seed=3, prefix="gen")
    return [(one.id, one.policy, one.steps, one.answer, one.outcome) for one in found]


def test_rows_are_those_of_this_process(folders: tuple[Path, Path]) -> None:
    own, copy = folders
    with serve(copy) as url:
        served = policy_for("generate", str(own), config(url, copy))
        greedy = rows(served, 0.0, 1)
        # That these are samples of the weights is looked at with the first of them.
        assert len(rows(served, 1.0, 6)) > 12
        separator = served.encoder.separator_id
        ids = served.encoder.encode_prompt(PROBLEMS[0].prompt)
        [step] = served.continue_chains([ids], [Prefix(0, len(ids))], temperature=0.0, max_new_tokens=60, batch_size=1,
                                        seed=0, stop_ids=(separator,))
    here = load_policy(str(own), config(url, copy))
    assert greedy == rows(here, 0.0, 1)
    [same] = here.continue_chains([ids], [Prefix(0, len(ids))], temperature=0.0, max_new_tokens=60, batch_size=1,
                                  seed=0, stop_ids=(separator,))
    assert (step.ids, step.finished, step.logprobs) == (same.ids, same.finished, [])


def test_continuous_batching_keeps_the_first_temperature_which_is_found_out(folders: tuple[Path, Path]) -> None:
    own, copy = folders
    with serve(copy, continuous_batching=True, cb_block_size=32, cb_num_blocks=128, cb_max_batch_tokens=256) as url:
        served = policy_for("generate", str(own), config(url, copy))
        greedy = rows(served, 0.0, 1)
        with pytest.raises(InputError, match=r"does not sample from the policy .* keeps the first request's"):
            rows(served, 1.0, 6)
    assert greedy == rows(load_policy(str(own), config(url, copy)), 0.0, 1)


def test_the_policy_s_own_folder_hides_the_boundary(folders: tuple[Path, Path]) -> None:
    own, _ = folders
    with serve(own) as url, pytest.raises(InputError, match=r"does not show <\|step\|>"):
        rows(policy_for("generate", str(own), config(url, own)), 1.0, 6)


def test_another_folder_is_refused_by_the_server(folders: tuple[Path, Path]) -> None:
    own, copy = folders
    with serve(copy) as url, pytest.raises(InputError, match=r"answers 400: .*Server is pinned to"):
        rows(policy_for("generate", str(own), config(url, own)), 0.0, 1)
    assert json.loads((copy / "config.json").read_text()) == json.loads((own / "config.json").read_text())

"""Past one small machine: sampling backends. Each part is a function that gives bars; `--parts` chooses among them.

Needs a workspace whose stage warmup has run: the policy there is the one that is sampled and served.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.report import Bar, arguments, write
from benchmarks.scale_client import raw_rate
from prm_core import config as configuration
from prm_core.config import Config, SamplingConfig
from prm_core.domains import DOMAINS, arithmetic
from prm_core.models.saving import save_showing_marks
from prm_core.sampling.backends import policy_for
from prm_core.sampling.backends.server import ServedPolicy
from prm_core.sampling.policy import Policy, load_policy
from prm_core.sampling.rollouts import sample_trajectories
from prm_core.stages.base import model_path
from prm_core.types import Problem, Trajectory

SEEDS = (71, 72, 73, 74, 75)
SERVE = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
# Of the sampled rows: a difference that chance makes less often than this is one.
LEVEL = 0.001


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """`transformers serve` with a policy, in a process of its own, for as long as the block lasts; its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as cache:
        process = subprocess.Popen(
            [*SERVE, str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--log-level", "error",
             *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": cache, "OMP_NUM_THREADS": "1"})
        try:
            _wait(port, process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            return
        except urllib.error.URLError:
            if process.poll() is not None:
                raise RuntimeError("transformers serve ended; is transformers[serving] installed?") from None
            time.sleep(0.1)
    raise RuntimeError("transformers serve did not come up")


def _config(given: argparse.Namespace, url: str, served: Path, concurrency: int = 16) -> Config:
    config = configuration.load(given.workspace)
    return replace(config, sampling=SamplingConfig(backend="server", server="transformers", endpoint=url,
                                                   model=str(served), concurrency=concurrency))


def _rows(policy: Policy, problems: Sequence[Problem], config: Config, *, samples: int, temperature: float, seed: int
          ) -> list[Trajectory]:
    return sample_trajectories(
        policy, problems, DOMAINS, samples=samples, temperature=temperature,
        max_new_tokens=config.generate.max_new_tokens, batch_size=config.generate.batch_size, seed=seed, prefix="gen",
        keep_empty=True)


def rows(given: argparse.Namespace) -> list[Bar]:
    """Greedy rows of both must be the same; of sampled ones answers and numbers of steps have one distribution."""
    from scipy.stats import chi2_contingency

    path = model_path(given.workspace, configuration.load(given.workspace).models.policy)
    same, values = [], []
    with tempfile.TemporaryDirectory() as folder:
        served = Path(folder) / "served"
        save_showing_marks(path, configuration.load(given.workspace).encoder.separator, served)
        with serving(served) as url:
            config = _config(given, url, served)
            here, there = load_policy(path, config), policy_for("generate", path, config)
            for seed in SEEDS[: 2 if given.quick else None]:
                problems = arithmetic.make_problems("scale", given.problems, seed)
                one, two = (_rows(policy, problems, config, samples=1, temperature=0.0, seed=seed)
                            for policy in (here, there))
                same.append(sum(a == b for a, b in zip(one, two, strict=True)) / len(one))
                first = problems[: max(given.problems // 10, 4)]
                tables = [Counter(_kind(row) for row in _rows(policy, first, config, samples=given.samples,
                                                              temperature=1.0, seed=seed))
                          for policy in (here, there)]
                values.append(_p_value(tables, chi2_contingency))
    return [
        Bar("greedy rows of transformers serve that are those of this process", min(same), min(same), max(same),
            "1.0 of all rows", min(same) == 1.0),
        Bar("sampled: smallest p-value that both have one distribution, times the seeds",
            min(values) * len(values), min(values), max(values), f">= {LEVEL}", min(values) * len(values) >= LEVEL)]


def _kind(row: Trajectory) -> tuple[str, bool | None, int]:
    return row.problem_id, row.outcome, min(len(row.steps), 6)


def _p_value(tables: Sequence[Counter[Any]], test: Callable[..., Any]) -> float:
    """Of a chi-square test of two counts; what is rarer than five is one kind."""
    whole = tables[0] + tables[1]
    kinds = [kind for kind in whole if whole[kind] >= 10]
    counted = [[table[kind] for kind in kinds] + [sum(table.values()) - sum(table[kind] for kind in kinds)]
               for table in tables]
    columns = [column for column in zip(*counted, strict=True) if sum(column)]
    return float(test(list(zip(*columns, strict=True))).pvalue) if len(columns) > 1 else 1.0


def throughput(given: argparse.Namespace) -> list[Bar]:
    """Tokens a second of `sample_trajectories` through a server at full load, over those of a client that only posts
    and reads (transformers serve has none of its own); in turn, so that both meet the same machine, and after a pass
    that is not timed, so that both find the prefixes in the server's cache."""
    path = model_path(given.workspace, configuration.load(given.workspace).models.policy)
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        served = Path(folder) / "served"
        save_showing_marks(path, configuration.load(given.workspace).encoder.separator, served)
        # Batches are the server's, as of every server one would use for load.
        with serving(served, "--continuous-batching", "--cb-block-size", "32", "--cb-num-blocks", "1024",
                     "--cb-max-batch-tokens", "1024") as url:
            config = _config(given, url, served, concurrency=32)
            policy = policy_for("generate", path, config)
            assert isinstance(policy, ServedPolicy)
            for seed in SEEDS[: 3 if given.quick else None]:
                problems = arithmetic.make_problems("scale", given.load, seed)
                # The first one also compares the weights.
                _rows(policy, problems, config, samples=1, temperature=1.0, seed=seed)
                for _ in range(1 if given.quick else given.repeats):
                    before, start = policy.usage.completion_tokens, time.perf_counter()
                    _rows(policy, problems, config, samples=1, temperature=1.0, seed=seed)
                    ours = (policy.usage.completion_tokens - before) / (time.perf_counter() - start)
                    rates.append((ours, raw_rate(policy, problems, config, seed)))
    ratios = [ours / bare for ours, bare in rates]
    middle = statistics.median(ratios)
    return [
        Bar("tokens a second through the server, over those of a bare client", middle, min(ratios), max(ratios),
            ">= 0.9 of the client's", middle >= 0.9),
        *(Bar(f"tokens a second through the server, {name}", statistics.median(found), min(found), max(found),
              "reported", True)
          for name, found in zip(("sampling", "a bare client"), zip(*rates, strict=True), strict=True))]


PARTS: dict[str, Callable[[argparse.Namespace], list[Bar]]] = {"rows": rows, "throughput": throughput}


def main() -> None:
    """The chosen parts, one after the other."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--workspace", type=Path, required=True, help="where the stage warmup has run")
        parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
        parser.add_argument("--problems", type=int, default=60, help="rows: problems of each seed")
        parser.add_argument("--samples", type=int, default=60, help="rows: sampled chains of a tenth of the problems")
        parser.add_argument("--load", type=int, default=256, help="throughput: problems of each seed")

    given = arguments("scale", more)
    bars = [bar for name in given.parts for bar in PARTS[name](given)]
    write(given, bars, parts=given.parts)


if __name__ == "__main__":
    main()

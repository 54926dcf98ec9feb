"""The benchmarks by name, and their figures on scored files: each file's, and those of the files together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prm_core.evaluation import metrics

# The benchmark modules are imported for their registration.
from prm_core.evaluation.benchmarks import agents, best_of_n, first_error, prmbench
from prm_core.evaluation.benchmarks.base import BENCHMARKS, Benchmark, BenchmarkChain, ScoredFile, pool, score_file
from prm_core.evaluation.metrics import Bootstrap, Estimate, Floats

__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkChain", "Figures", "ScoredFile", "agents", "best_of_n",
           "first_error", "measure_files", "prmbench", "score_file"]

COUNTS = ("chains", "problems", "judged_steps", "truncated_chains", "unscored_steps", "left_out_chains")
TOGETHER = {False: "average", True: "all files"}


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured on a file, or on several together.

    Attributes:
        name: of the file, or how the files were put together.
        chains, problems, judged_steps: how many; judged steps have a gold verdict.
        truncated_chains, unscored_steps: what the model's context cut off.
        left_out_chains: those it had no room for at all, which are none of `chains`.
        estimates: `<model>/<metric>` → estimate, those undefined left out.
    """

    name: str
    chains: int
    problems: int
    judged_steps: int
    truncated_chains: int
    unscored_steps: int
    left_out_chains: int
    estimates: dict[str, Estimate]

    def flat(self) -> dict[str, float | int]:
        """One level, as JSON: the counts, then each estimate as `<key>`, `<key>_low`, `<key>_high`."""
        table: dict[str, float | int] = {
            name: getattr(self, name) for name in COUNTS}
        for name, estimate in self.estimates.items():
            table |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return table


def _is_centred(key: str) -> bool:
    """Resampling pushes the calibration error up: each resample adds noise to every bin."""
    return key.endswith("/ece")


Draws = dict[str, tuple[float, Floats]]


def _measure(benchmark: Benchmark, file: ScoredFile, threshold: float, bootstrap: Bootstrap) -> tuple[Figures, Draws]:
    draws = {key: bootstrap.draws(statistic) for key, statistic in benchmark.measure(file, threshold).items()}
    estimates = {key: metrics.interval(*pair, centred=_is_centred(key)) for key, pair in draws.items()}
    estimates = {key: estimate for key, estimate in estimates.items() if estimate.defined}
    judged = sum(verdict is not None for chain in file.chains for verdict in chain.gold)
    return Figures(file.name, len(file.chains), file.problems, judged, file.truncated, file.unscored, file.left_out,
                   estimates), {
        key: draws[key] for key in estimates}


def measure_files(
    benchmark: Benchmark, files: Sequence[ScoredFile], threshold: float, resamples: int, seed: int
) -> tuple[list[Figures], Figures | None]:
    """Figures of each file, and of several files together: pooled or as the unweighted mean, as the benchmark has it.

    Args:
        benchmark: the protocol.
        files: scored, at least one.
        threshold: of the step scores.
        resamples, seed: of the bootstrap over problems. Each file has a seed of its own, for files are separate sets
            of problems.
    """
    each, drawn = [], []
    for index, file in enumerate(files):
        figures, draws = _measure(benchmark, file, threshold, Bootstrap(file.problems, resamples, seed + index))
        each.append(figures)
        drawn.append(draws)
    if len(files) == 1:
        return each, None
    if benchmark.pooled:
        everything = pool(files, TOGETHER[True])
        return each, _measure(benchmark, everything, threshold, Bootstrap(everything.problems, resamples, seed))[0]
    shared = [key for key in drawn[0] if all(key in draws for draws in drawn)]
    means = {key: metrics.average([draws[key] for draws in drawn], centred=_is_centred(key)) for key in shared}
    counts = [sum(getattr(figures, name) for figures in each) for name in COUNTS]
    return each, Figures(TOGETHER[False], *counts, means)

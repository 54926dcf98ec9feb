"""`prm evaluate`: a reward model on benchmarks from files, a floor beside every figure."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prm_core.errors import InputError

if TYPE_CHECKING:
    from prm_core.evaluation.benchmarks.base import Benchmark, Scorer
    from prm_core.evaluation.benchmarks.suite import Figures

log = logging.getLogger(__name__)


def _load(model: str, workspace: Path, device: str, batch_size: int, benchmark: Benchmark) -> Scorer:
    from prm_core.scoring.foreign import load_any_scorer
    from prm_core.serving.model_registry import reward_model_folder

    scorer = load_any_scorer(reward_model_folder(model, workspace), device=device, batch_size=batch_size)
    if scorer.kind == "outcome" and not benchmark.outcome_models:
        raise InputError(f"--model {model}: an outcome reward model scores no steps, which {benchmark.name} asks for; "
                         "name a process reward model, or use --benchmark best_of_n")
    return scorer


def _result(each: list[Figures], together: Figures | None, pooled: bool, head: dict[str, Any]) -> dict[str, Any]:
    how = "pooled" if pooled else "unweighted mean of the files"
    return head | {"files": {figures.name: figures.flat() for figures in each}, "together": together and how,
                   "average": together and together.flat()}


def evaluate(
    files: Annotated[list[Path], typer.Argument(help="Benchmark files; several are averaged or pooled, as the "
                                                "benchmark has it.")],
    model: Annotated[str, typer.Option(help="Reward model: models:/prm@champion, runs:/ID/reward_model or a folder.")],
    benchmark: Annotated[str, typer.Option(help="processbench, bigbench_mistake, agentprocessbench, who_and_when, "
                                           "prmbench, arithmetic or best_of_n.")],
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
    threshold: Annotated[float | None, typer.Option(help="A step below it is called wrong; default 0.5.")] = None,
    threshold_from: Annotated[Path | None, typer.Option(
        help="Choose the threshold on this file (same benchmark) instead, for the best headline figure.")] = None,
    reliability: Annotated[Path | None, typer.Option(help="PNG for reliability curves and score histograms.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Chains scored together.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workspace: Annotated[Path, typer.Option(help="Folder whose model store (mlflow.db) knows the model.")] = Path("."),
) -> None:
    """Measure a reward model on a benchmark's files.

    processbench, arithmetic: the first step scoring below the threshold is the predicted error; F1 is the harmonic mean
    of the share of errors named exactly (acc_err) and of sound chains passed (acc_ok), averaged over files.

    bigbench_mistake: the same prediction; accuracy is the share of chains whose mistake, or its absence, is named.

    agentprocessbench: StepAcc (ratings given exactly; a score cannot say "neutral") and FirstErrAcc; files pooled.

    who_and_when: how often the agent of the first wrong step is named in runs that failed (floors: a guess, the agent
    most often at fault in the other runs), and the step; files pooled.

    prmbench: PRMScore, the mean of the F1 of right and of wrong steps, by kind of error; files pooled.

    best_of_n: how often the best-scored of N chains is right, by min, prod, mean and last; takes outcome models too.

    Beside them: AUROC, Brier and calibration of single steps, and how often the lowest score is the last step's (high:
    the model waits for the answer; Math-Shepherd 44.5 %, Qwen2.5-Math-PRM-7B 17.3 %). Floors: random (a uniform guess),
    coin (one chance of "wrong" for every step, the best in hindsight), silent (no error anywhere), middle (knows if the
    answer is right), base rate (one score for all steps). Intervals are 95 % over problems.
    """
    from rich.console import Console

    from prm_core import config as configuration
    from prm_core.evaluation.benchmarks import plots, suite
    from prm_core.evaluation.benchmarks.tables import tables
    from prm_core.platform import store

    protocol = suite.BENCHMARKS[benchmark]
    if threshold is not None and threshold_from is not None:
        raise InputError("--threshold and --threshold-from: give one of them")
    if protocol.choose is None and not threshold is threshold_from is None:
        raise InputError(f"{benchmark} calls no step wrong, so it takes no threshold; leave the option out")
    if len({file.resolve() for file in files}) < len(files):
        raise InputError("a benchmark file is named twice; name each once")
    # Before the model loads: a bad line should not cost a minute.
    wanted = {file.resolve(): str(file) for file in (*([threshold_from] if threshold_from else []), *files)}
    chains = {path: protocol.read(Path(name)) for path, name in wanted.items()}
    for path, rows in chains.items():
        judged = sum(verdict is not None for chain in rows for verdict in chain.gold)
        log.info("%s: %d chains are measured on, %d judged steps", wanted[path], len(rows), judged)
    who = configuration.workers_of(workspace)
    scorer = _load(model, workspace, device, batch_size, protocol)
    scored = {path: suite.score_file(scorer, wanted[path], rows, ranks=protocol.ranks, who=who)
              for path, rows in chains.items()}
    chosen, rule = (0.5, "default") if threshold is None else (threshold, "given")
    if threshold_from is not None and protocol.choose is not None:
        chosen, best = protocol.choose([scored[threshold_from.resolve()]])
        rule = f"chosen on {threshold_from} ({best} there)"
    measured = [scored[file.resolve()] for file in files]
    each, together = suite.measure_files(protocol, measured, chosen, resamples, seed)
    if out is not None:
        head = {"model": model, "model_version": scorer.version, "model_kind": scorer.kind, "benchmark": benchmark,
                "threshold": chosen if protocol.choose else None,
                "threshold_rule": rule if protocol.choose else None,
                "threshold_from": str(threshold_from) if threshold_from else None, "seed": seed, "resamples": resamples}
        store.write_json(out, _result(each, together, protocol.pooled, head))
    if reliability is not None:
        plots.write_reliability(reliability, measured)
    # Names of files and models are no markup.
    console = Console(markup=False)
    console.print(f"{benchmark}, {model}" + (f", threshold {chosen:.4g} {rule}" if protocol.choose else "")
                  + ". Figures times 100, with 95 % intervals over problems and floors.", highlight=False)
    for table in tables(protocol, each, together):
        console.print(table)
    if threshold_from is not None and threshold_from.resolve() in {file.resolve() for file in files}:
        console.print(f"The threshold was chosen on {threshold_from} itself: its figures are the best in hindsight.",
                      highlight=False)

"""`prm evaluate`: a reward model on first-error benchmarks, the random floor beside every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prm_core.errors import InputError

if TYPE_CHECKING:
    from prm_core.evaluation.benchmarks import ScoredFile
    from prm_core.evaluation.metrics import Estimate

COLUMNS = (("F1", "prm/first_error_f1"), ("acc_err", "prm/acc_err"), ("acc_ok", "prm/acc_ok"),
           ("random F1", "random/first_error_f1"), ("middle F1", "middle/first_error_f1"))


def _flat(figures: Mapping[str, Estimate]) -> dict[str, float]:
    return {key: value for name, e in figures.items()
            for key, value in ((name, e.value), (f"{name}_low", e.low), (f"{name}_high", e.high))}


def _print_table(title: str, rows: Sequence[tuple[str, str, Mapping[str, Estimate]]]) -> None:
    """One row a file: figures in per cent, their 95 % intervals below them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("file", overflow="fold")
    for name in ("chains", *(name for name, _ in COLUMNS)):
        table.add_column(name, justify="right", no_wrap=True)
    for file, chains, figures in rows:
        cells = [figures.get(key) for _, key in COLUMNS]
        table.add_row(file, chains, *(
            f"{100 * e.value:.1f}\n{100 * e.low:.1f}-{100 * e.high:.1f}" if e is not None else "-" for e in cells))
    Console().print(table)


def evaluate(
    files: Annotated[list[Path], typer.Argument(help="Benchmark files; several are averaged unweighted.")],
    model: Annotated[str, typer.Option(help="Reward model: models:/prm@champion, runs:/ID/reward_model or a folder.")],
    benchmark: Annotated[str, typer.Option(help="Format of the files: processbench or arithmetic.")],
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    threshold: Annotated[float | None, typer.Option(help="A step below it is called wrong; default 0.5.")] = None,
    threshold_from: Annotated[Path | None, typer.Option(
        help="Choose the threshold on this file (same format) instead, for the best F1.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Chains scored together.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workspace: Annotated[Path, typer.Option(help="Folder whose model store (mlflow.db) knows the model.")] = Path("."),
) -> None:
    """Measure how exactly a reward model finds the first wrong step.

    ProcessBench protocol: the first step scoring below the threshold is the prediction; F1 is the harmonic mean of the
    share of errors named exactly (acc_err) and of sound chains passed (acc_ok). Beside it: a uniform guess (random),
    and naming the middle step of every chain with a wrong answer (middle). Intervals are 95 % over problems.

    processbench: JSON array or JSON lines with problem, steps, label (first wrong step from 0, or -1).
    arithmetic: JSON lines with prompt, steps, and label or the problem's meta for the oracle.
    """
    from prm_core import store
    from prm_core.evaluation import benchmarks
    from prm_core.models.scorer import load_scorer
    from prm_core.serving.registry import reward_model_folder

    if threshold is not None and threshold_from is not None:
        raise InputError("--threshold and --threshold-from: give one of them")
    if len({file.resolve() for file in files}) < len(files):
        raise InputError("a benchmark file is named twice; name each once")
    # Before the model loads: a bad line should not cost a minute.
    read = benchmarks.BENCHMARKS[benchmark]
    chains = {str(file): read(file) for file in (*files, *([threshold_from] if threshold_from else []))}
    scorer = load_scorer(reward_model_folder(model, workspace), device=device, batch_size=batch_size)
    if scorer.kind != "process":
        raise InputError(f"--model {model}: an {scorer.kind} reward model scores no steps; name a process reward model")
    separator = scorer.encoder.config.separator
    scored: dict[str, ScoredFile] = {name: benchmarks.score_file(scorer, name, rows, separator)
                                     for name, rows in chains.items()}
    chosen = 0.5 if threshold is None else threshold
    if threshold_from is not None:
        chosen = benchmarks.choose_threshold([scored[str(threshold_from)]])
    wanted = [scored[str(file)] for file in files]
    each, average = benchmarks.measure_files(wanted, chosen, resamples, seed)
    rows = [(file.name, str(len(file.chains)), each[file.name]) for file in wanted]
    if len(wanted) > 1:
        rows.append(("average", str(sum(len(file.chains) for file in wanted)), average))
    _print_table(f"{benchmark}, threshold {chosen:.4g}, per cent with 95 % interval", rows)
    if out is not None:
        result: dict[str, Any] = {
            "model": model, "model_version": scorer.version, "benchmark": benchmark, "threshold": chosen,
            "threshold_from": str(threshold_from) if threshold_from else None, "seed": seed, "resamples": resamples,
            "files": {file.name: {"chains": len(file.chains), "problems": len({c.prompt for c in file.chains}),
                                  "truncated_chains": file.truncated, **_flat(each[file.name])} for file in wanted},
            "average": _flat(average),
        }
        store.write_json(out, result)

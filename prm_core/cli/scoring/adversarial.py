"""`prm adversarial`: how much small edits of a chain fool reward models, PRM against ORM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prm_core.errors import InputError

if TYPE_CHECKING:
    from prm_core.evaluation.adversarial.gold_chains import GoldChain
    from prm_core.evaluation.adversarial.suite import AdversarialResult
    from prm_core.evaluation.metrics import Estimate

COLUMNS = (("clean", "accuracy_clean"), ("edited", "accuracy"), ("lost", "accuracy_lost"), ("fooled", "fooled"),
           ("found", "first_error_found"))


def _cell(estimate: Estimate | None, key: str) -> str:
    if estimate is None:
        return "-"
    interval = f"\n{100 * estimate.low:.1f} to {100 * estimate.high:.1f}" if key == "accuracy_lost" else ""
    return f"{100 * estimate.value:.1f}{interval}"


def print_result(result: AdversarialResult) -> None:
    """A row for each perturbation (chains) and model, in per cent, what is lost with its interval; PRM against ORM."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from prm_core.evaluation.adversarial.chart import bars

    table = Table(title="Verdicts under perturbation, per cent (95 % interval)", title_justify="left", box=box.SIMPLE)
    for name in ("perturbation", "model"):
        table.add_column(name, overflow="fold")
    for name, _ in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for what in bars(result):
        count = result.numbers.get(f"{what}/n_chains")
        for index, model in enumerate(result.models):
            cells = [_cell(result.figures.get(f"{model}/{what}/{key}"), key) for _, key in COLUMNS]
            table.add_row("" if index else what if count is None else f"{what} ({count:.0f})", model, *cells)
    # A model folder's name is no markup.
    Console(markup=False).print(table)
    for key, estimate in result.figures.items():
        if key.endswith("/all/lost_ratio"):
            typer.echo(f"{key.removesuffix('/all/lost_ratio')}: accuracy lost by the PRM over that lost by the ORM "
                       f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})")
    for what, reasons in result.skipped.items():
        if reasons:
            typer.echo(f"{what}: left out {', '.join(f'{count} {why}' for why, count in sorted(reasons.items()))}")


def short_names(uris: Sequence[str]) -> list[str]:
    """The last part of each address where these differ, else the whole of it. InputError for one named twice."""
    if len(set(uris)) < len(uris):
        raise InputError("a model is named twice; name each once")
    names = [uri.rstrip("/").rpartition("/")[2] for uri in uris]
    return names if len(set(names)) == len(names) else list(uris)


def read_side(
    files: list[Path], format_name: str, trajectories: Path | None, per_problem: int, seed: int
) -> list[GoldChain]:
    """The chains of files, with the sampled ones of their problems where a folder of trajectories is named."""
    from prm_core.domains import arithmetic
    from prm_core.evaluation.adversarial import gold_chains
    from prm_core.platform import store
    from prm_core.types import Problem, Trajectory

    chains = [chain for file in files for chain in gold_chains.read_chains(file, format_name)]
    if trajectories is not None:
        if format_name != arithmetic.NAME:
            raise InputError(f"--trajectories: chains of a {format_name} file are no trajectories of a workspace; "
                             f"leave it out, or name problems (--format {arithmetic.NAME})")
        problems = [problem for file in files for problem in store.read_jsonl(Problem, file)]
        chains += gold_chains.from_trajectories(problems, store.read_shards(Trajectory, trajectories))
    return gold_chains.pick_chains(chains, per_problem, seed)


def adversarial(
    files: Annotated[list[Path], typer.Argument(help="Chains to edit.")],
    model: Annotated[list[str], typer.Option(help="Process reward model; may be given several times.")],
    threshold_from: Annotated[list[Path], typer.Option(
        help="Clean chains of other problems, that each model's threshold is chosen on.")],
    against: Annotated[list[str] | None, typer.Option(help="Outcome reward model, likewise.")] = None,
    format_name: Annotated[str, typer.Option(
        "--format", help="arithmetic (problems as in data/test.jsonl) or a format with step labels.")] = "arithmetic",
    trajectories: Annotated[Path | None, typer.Option(
        help="Folder of trajectories; those of the files' problems are added.")] = None,
    perturbation: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    aggregate: Annotated[str, typer.Option(help="From step scores to a PRM's chain score.")] = "min",
    per_problem: Annotated[int, typer.Option(
        min=0, help="Sound chains of each problem, and unsound ones; 0 for all.")] = 2,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file for the bar chart.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the edits, the choice of chains and the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Chains scored together.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workspace: Annotated[Path, typer.Option(help="Folder whose model store (mlflow.db) knows the models.")] = Path("."),
) -> None:
    """Measure how much small edits of a chain fool reward models.

    Damaging edits (a number, an operator, two steps exchanged, a step dropped) make a sound chain unsound; harmless
    ones (confident filler, a step restated, irrelevant facts) leave it as it was. The verdict is "sound" where the
    chain score reaches the model's threshold; accuracy lost is that on the clean chains minus that on the edited ones.

    Example:  prm adversarial data/test.jsonl --threshold-from data/dev.jsonl --trajectories
    artifacts/evaluate/trajectories --model artifacts/train_prm/prm --against artifacts/train_prm/orm
    """
    from prm_core.evaluation.adversarial.chart import draw
    from prm_core.evaluation.adversarial.suite import run_adversarial
    from prm_core.platform import store
    from prm_core.scoring.foreign import load_any_scorer
    from prm_core.serving.model_registry import reward_model_folder

    wanted = [*((uri, False) for uri in model), *((uri, True) for uri in against or [])]
    names = short_names([uri for uri, _ in wanted])
    if len({file.resolve() for file in (*files, *threshold_from)}) < len(files) + len(threshold_from):
        raise InputError("a file is named twice; name each once, and other problems for the threshold")
    # Before the models load: a bad line should not cost a minute.
    chains, dev = (read_side(side, format_name, trajectories, per_problem, seed) for side in (files, threshold_from))
    scorers = {}
    for name, (uri, outcome) in zip(names, wanted, strict=True):
        scorers[name] = load_any_scorer(reward_model_folder(uri, workspace), device=device, batch_size=batch_size)
        if (scorers[name].kind == "outcome") != outcome:
            option, other = ("--against", "--model") if outcome else ("--model", "--against")
            raise InputError(f"{option} {uri}: {scorers[name].kind} reward models go to {other}")
    result = run_adversarial(scorers, chains, dev, perturbations=perturbation or (), aggregate=aggregate,
                             resamples=resamples, seed=seed)
    print_result(result)
    if out is not None:
        inputs = {"models": {name: uri for name, (uri, _) in zip(names, wanted, strict=True)},
                  "files": [str(file) for file in files], "format": format_name, "per_problem": per_problem,
                  "threshold_from": [str(file) for file in threshold_from],
                  "trajectories": str(trajectories) if trajectories else None}
        store.write_json(out, {"inputs": inputs, **result.to_dict()})
    if plot is not None:
        draw(result, plot)

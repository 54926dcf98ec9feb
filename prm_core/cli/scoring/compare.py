"""`prm compare`: a reward model, rules, an outcome model and language models as judges of the same trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prm_core.errors import InputError

if TYPE_CHECKING:
    from prm_core.evaluation.judges.base import Case, Judge, Setup

DEV = "dev-base"


def judge_names(specs: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Name → (kind, source) of `KIND` and `KIND=SOURCE`; the kind alone names the first of it. InputError for one that
    is named twice."""
    found: dict[str, tuple[str, str]] = {}
    for spec in specs:
        kind, _, source = spec.partition("=")
        name = spec if kind in found else kind
        if name in found:
            raise InputError(f"--judge {spec}: named twice; name each judge once")
        found[name] = kind, source
    return found


def read_prices(given: Sequence[str], judges: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Judge → prices of `JUDGE=READ,WRITTEN`. Raises InputError for another judge, or what is no price."""
    found = {}
    for text in given:
        name, _, prices = text.rpartition("=")
        try:
            read, wrote = (float(price) for price in prices.split(","))
        except ValueError:
            raise InputError(f"--price {text}: expected JUDGE=READ,WRITTEN, the prices of a million tokens") from None
        if name not in judges:
            raise InputError(f"--price {text}: there is no judge {name!r}; those are {', '.join(judges)}")
        if not (0 <= read < float("inf") and 0 <= wrote < float("inf")):
            raise InputError(f"--price {text}: a price is a number from 0")
        found[name] = read, wrote
    return found


def make_judges(specs: Sequence[str], prices: Sequence[str], setup: Setup) -> dict[str, Judge]:
    """The judges by name, in order."""
    from prm_core.evaluation.judges import models, rules
    from prm_core.evaluation.judges.base import JUDGES

    # The modules are imported for their registration.
    assert {rules.NAME, models.PRM} <= set(JUDGES)
    named = judge_names(specs)
    priced = read_prices(prices, list(named))
    makers = {name: JUDGES[kind] for name, (kind, _) in named.items()}
    judges = {name: makers[name](source, setup) for name, (_, source) in named.items()}
    for name, pair in priced.items():
        judges[name].prices = pair
    return judges


def read_cases(path: Path, format_name: str, tag: str, limit: int, per_problem: int | None) -> list[Case]:
    """The cases of a workspace or a file, as many as asked for."""
    from prm_core.evaluation.judges import cases
    from prm_core.evaluation.protocol import STEP_CHAINS

    most = per_problem if per_problem is not None else STEP_CHAINS if path.is_dir() else 0
    return cases.some(cases.read(path, format_name, tag), limit, most)


def compare(
    trajectories: Annotated[Path, typer.Argument(help="File of labelled chains, or a workspace whose stage evaluate "
                                                 "has run.")],
    model: Annotated[str, typer.Option(help="Process reward model that the others are held against: "
                                       "models:/prm@champion, runs:/ID/reward_model or a folder.")],
    judge: Annotated[list[str] | None, typer.Option(help=
        "rules (or rules=NAME,NAME), orm=MODEL, llm (or llm=MODEL), prm=MODEL; may be repeated.")] = None,
    from_format: Annotated[str, typer.Option("--format", help="Format of a file, as `prm data convert` knows them.")
                           ] = "agentprocessbench",
    which: Annotated[str, typer.Option(help="Of a workspace: split and policy of the trajectories.")] = "test-base",
    per_problem: Annotated[int | None, typer.Option(min=0, help="At most so many trajectories of a problem, 0 for all; "
                                                    "default: 4 of a workspace's, all of a file's.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="At most so many in all; 0: all.")] = 0,
    threshold: Annotated[float | None, typer.Option(help="A score below it says wrong, for every reward model; "
                                                    "default: chosen, or 0.5 where there is nothing to choose it on.")
                         ] = None,
    threshold_from: Annotated[Path | None, typer.Option(help="Choose each reward model's threshold on this file or "
                                                        "workspace; default: the workspace's dev problems.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Times that every trajectory is judged.")] = 1,
    profile: Annotated[str, typer.Option(help="Shipped profile or YAML file: label.judge has the settings of llm, "
                                         "models.device.")] = "default",
    endpoint: Annotated[str | None, typer.Option(help="Base URL of the server that llm asks, instead of the profile's "
                                                 "label.judge.endpoint.")] = None,
    price: Annotated[list[str] | None, typer.Option(help="JUDGE=READ,WRITTEN: prices of a million tokens; llm has "
                                                    "those of the profile.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap, and of what judges draw.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG for the bar chart.")] = None,
    workspace: Annotated[Path, typer.Option(help="Folder whose model store (mlflow.db) knows the model.")] = Path("."),
) -> None:
    """Compare judges of agents' steps on the same trajectories with gold verdicts.

    A step that a judge says nothing of is a miss. Of a workspace the oracle's verdicts are gold, up to the first wrong
    step; of a file its labels. Every trajectory is judged alone, which is what the times are of.

    rules: checks of typed turns (a failed or repeated call, arguments that do not fit, a tool that was not offered, a
    number nobody told, an empty turn); each reason names its rule. orm: an outcome model that reads the run as far as
    each step. llm: a language model at an endpoint or on this machine, asked as the labelling strategy `judge` asks.

    Example:  prm compare runs/agents --model runs/agents/artifacts/train_prm/prm --judge rules --repeats 2
    """
    from rich.console import Console

    from prm_core import config as configuration
    from prm_core.evaluation.judges import chart, comparison
    from prm_core.evaluation.judges.base import Setup
    from prm_core.evaluation.judges.tables import lines, tables
    from prm_core.platform import environment, store
    from prm_core.serving.model_registry import reward_model_folder

    if threshold is not None and threshold_from is not None:
        raise InputError("--threshold and --threshold-from: give one of them")
    config = configuration.parse(configuration.resolve(
        environment.project_root() / configuration.PARAMS_FILE, profile), f"profile {profile}")
    if endpoint is not None:
        config = replace(config, label=replace(config.label, judge=replace(config.label.judge, endpoint=endpoint)))
    specs = [f"prm={model}", *(judge or ())]
    # Names and prices before anything is read, and trajectories before a model loads.
    read_prices(price or (), list(judge_names(specs)))
    cases = read_cases(trajectories, from_format, which, limit, per_problem)
    source = threshold_from or (trajectories if trajectories.is_dir() and threshold is None else None)
    dev = [] if source is None else read_cases(source, from_format, DEV, 0, per_problem)
    judges = make_judges(specs, price or (), Setup(config, lambda uri: reward_model_folder(uri, workspace)))
    judged = comparison.judge_cases(
        judges, cases, dev, dev_name=f"{source} {DEV}" if source and source.is_dir() else str(source),
        threshold=0.5 if threshold is None else threshold, repeats=repeats, seed=seed)
    found = {"trajectories_of": str(trajectories), "repeats": repeats, "seed": seed, "resamples": resamples,
             **comparison.compare(cases, judged, resamples, seed)}
    if out is not None:
        store.write_json(out, found)
    if plot is not None:
        chart.draw(found, plot)
    # Names of files, models and tools are no markup.
    console = Console(markup=False)
    console.print(f"{trajectories}: {found['trajectories']} trajectories of {found['problems']} problems, "
                  f"{found['judged_steps']} judged steps, {found['wrong_steps']} of them wrong", highlight=False)
    for table in tables(found):
        console.print(table)
    for line in lines(found):
        console.print(line, highlight=False, soft_wrap=True)

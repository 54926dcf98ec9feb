"""`prm data`: make the embedded problems, bring your own, read what the chain has written, convert labelled data."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from prm_core.formats import LabelledChain

app = typer.Typer(no_args_is_help=True, help="Make, import and export problems, trajectories and labels.")

Out = Annotated[Path, typer.Option(help="The data folder to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite data that DVC has not recorded.")]
DropLabels = Annotated[bool, typer.Option("--drop-labels", help="Start without the human labels of the folder, which "
                                          "stay otherwise.")]
Workspace = Annotated[Path, typer.Option(help="Folder with params.yaml, whose seed and counts decide.")]


@app.command()
def make(
    out: Out = Path("data"), force: Force = False, drop_labels: DropLabels = False, workspace: Workspace = Path(".")
) -> None:
    """Write data/ from the seed: problems with worked solutions, and a few chains with human labels.

    The same seed and counts (seed, data: in params.yaml) always give the same bytes. What people have judged in
    data/human stays unless you say --drop-labels. Record a change with `dvc add data`.
    """
    from prm_core import config as configuration
    from prm_core.platform import workspace as workspaces
    from prm_core.problems import prepare

    prepare.remake_data(out, configuration.load(workspace), force=force, drop_labels=drop_labels)
    typer.echo(f"{out}: {workspaces.data_hash(out)}")


@app.command("import")
def import_problems(
    file: Annotated[Path, typer.Argument(help="JSON lines, a JSON array or object, CSV, TSV, Parquet, Arrow, or a "
                                         "folder of these.")],
    out: Out = Path("data"),
    force: Force = False,
    drop_labels: DropLabels = False,
    workspace: Workspace = Path("."),
) -> None:
    """Replace data/ by your own problems, split 80/10/10 into train, dev and test by a hash of the id.

    A record has `prompt` and `answer` (or question, problem, final_answer, …), perhaps `solution`, `id`, `domain`; a
    worked answer that ends in `#### N` (GSM8K) or `\\boxed{N}` (MATH) is read as N and a solution. What was taken as
    what, dropped and left out is logged. Human labels in data/human stay unless you say --drop-labels.

    With 1,000 or more worked solutions the base models are trained on yours; otherwise data/warmup.jsonl stays. For one
    run beside the embedded problems use `prm run --problems FILE` instead, which needs nothing else.
    """
    from prm_core import config as configuration
    from prm_core.problems import prepare

    config = configuration.load(workspace)
    user = prepare.import_problems(file, out, config, force=force, drop_labels=drop_labels)
    typer.echo(f"{out}: {len(user.problems)} problems ({user.duplicates} duplicates dropped); now run `dvc add {out}`")
    if user.domain != config.domain:
        params = workspace / configuration.PARAMS_FILE
        typer.echo(f"and set `domain: {user.domain}` in {params} (it is {config.domain})")


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(help="A folder of shards (artifacts/generate/trajectories, artifacts/label/merged, …).")
    ],
    out: Annotated[Path | None, typer.Option(help="JSONL file to write; standard output when left out.")] = None,
) -> None:
    """Write trajectories or labels as JSONL, one object a line, with the field names of the Parquet shards.

    Example:  prm data export artifacts/generate/trajectories --out trajectories.jsonl
    """
    import json

    from prm_core.errors import InputError
    from prm_core.platform import store

    shards = sorted(source.glob("part-*.parquet"))
    columns = store.read_table(shards[0]).column_names if shards else []
    kind = next((kind for kind, schema in store.schemas().items() if columns == schema.names), None)
    if kind is None:
        raise InputError(f"{source}: no folder of trajectories or labels (part-*.parquet); the chain writes such as "
                         "artifacts/generate/trajectories and artifacts/label/merged")
    rows = store.read_shards(kind, source)
    if out is not None:
        store.write_jsonl(out, rows)
        typer.echo(f"{out}: {len(rows)} lines")
        return
    for row in rows:
        sys.stdout.write(json.dumps(store.to_record(row), ensure_ascii=False) + "\n")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="JSON lines, a JSON array (.json) or Parquet.")],
    out: Annotated[Path, typer.Argument(help="File to write: .json for an array, .parquet for prm800k_flat, else JSON "
                                             "lines.")],
    from_format: Annotated[str, typer.Option("--from", help="Format of IN.")],
    to_format: Annotated[str, typer.Option("--to", help="Format of OUT.")],
    neutral: Annotated[str | None, typer.Option(
        help="What a neutral rating (PRM800K, AgentProcessBench) counts as: right, as Qwen's models take it and the "
             "default, or wrong, as TRL's does.")] = None,
    threshold: Annotated[float | None, typer.Option(
        min=0, max=1, help="Write hard labels: a step whose soft label is below it is wrong, any other right.")] = None,
) -> None:
    """Convert step-labelled data of other projects, one record at a time: files may be larger than memory.

    Formats: trl, math_shepherd, openrlhf, rlhflow, paddle, math_aps, prm800k (as published), prm800k_flat (a rated next
    step a row), processbench, prmbench, mr_gsm8k, bigbench_mistake; and runs of agents: chat, agentprocessbench,
    tau_bench, tau2, atif, mlflow_trace, otlp, mini_swe_agent, swe_agent, openhands, inspect, verifiers.
    docs/own-data.md has a table of them. A format that cannot hold the data is refused, naming what is missing; a line
    for each file says what was taken, left out and repaired. OUT appears when all of it is written.

    TRL's PRMTrainer cuts soft labels to 0: for it, make them hard (--threshold 0.5).

    Example:  prm data convert phase1_train.parquet train.jsonl --from prm800k_flat --to trl --neutral wrong
    """
    from prm_core.errors import InputError
    from prm_core.formats import FORMATS, hard_labels
    from prm_core.platform.progress import track

    if out.exists() and out.samefile(source):
        raise InputError(f"{out}: is the file to convert; name another, so that nothing of it is lost")
    reader, writer = FORMATS[from_format], FORMATS[to_format]
    chains = steps = 0

    def counted() -> Iterator[LabelledChain]:
        nonlocal chains, steps
        for chain in reader.read(source, neutral=neutral):
            chains += 1
            steps += sum(label is not None for label in chain.labels)
            yield chain if threshold is None else hard_labels(chain, threshold)

    records = writer.write(out, track(counted(), f"{from_format} to {to_format}", unit="chain"))
    typer.echo(f"{out}: {records:,} records of {chains:,} chains with {steps:,} labelled steps")

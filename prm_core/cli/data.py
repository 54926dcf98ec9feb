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
Workspace = Annotated[Path, typer.Option(help="Folder with params.yaml, whose seed and counts decide.")]


@app.command()
def make(out: Out = Path("data"), force: Force = False, workspace: Workspace = Path(".")) -> None:
    """Write data/ from the seed: problems with worked solutions, and a few chains with human labels.

    The same seed and counts (seed, data: in params.yaml) always give the same bytes. Record a change with
    `dvc add data`.
    """
    from prm_core import config as configuration
    from prm_core.platform import workspace as workspaces
    from prm_core.problems import embedded

    config = configuration.load(workspace)
    workspaces.replace_data(out, lambda folder: embedded.make_data(folder, config), force=force)
    typer.echo(f"{out}: {workspaces.data_hash(out)}")


@app.command("import")
def import_problems(
    file: Annotated[Path, typer.Argument(help="JSONL: prompt, answer; optionally solution, id, domain.")],
    out: Out = Path("data"),
    force: Force = False,
    workspace: Workspace = Path("."),
) -> None:
    """Replace data/ by your own problems, split 80/10/10 into train, dev and test by a hash of the id.

    `solution` is a text with a step per line, or a list of steps. With 1,000 or more of them the base models are
    trained on yours; otherwise data/warmup.jsonl stays. For one run beside the embedded problems use
    `prm run --problems FILE` instead, which needs nothing else.
    """
    from prm_core import config as configuration
    from prm_core.platform import workspace as workspaces
    from prm_core.problems import own, prepare

    config = configuration.load(workspace)
    user = own.read_problems(file)
    warmup = out / "warmup.jsonl"
    workspaces.replace_data(out, lambda folder: prepare.write_user_data(user, folder, config, warmup), force=force)
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
) -> None:
    """Convert step-labelled data of other projects, one record at a time: files may be larger than memory.

    Formats: trl, math_shepherd, prm800k (as published), prm800k_flat (a rated next step a row), processbench, prmbench,
    agentprocessbench, bigbench_mistake, math_aps; an unknown name gets the list of all. A format that cannot hold the
    data is refused, naming what is missing; what is left out is counted in the log. OUT appears when all of it is
    written.

    Example:  prm data convert phase1_train.parquet train.jsonl --from prm800k_flat --to trl --neutral wrong
    """
    from prm_core.formats import FORMATS
    from prm_core.platform.progress import track

    reader, writer = FORMATS[from_format], FORMATS[to_format]
    chains = steps = 0

    def counted() -> Iterator[LabelledChain]:
        nonlocal chains, steps
        for chain in reader.read(source, neutral=neutral):
            chains += 1
            steps += sum(label is not None for label in chain.labels)
            yield chain

    records = writer.write(out, track(counted(), f"{from_format} to {to_format}", unit="chain"))
    typer.echo(f"{out}: {records:,} records of {chains:,} chains with {steps:,} labelled steps")

"""The chain as a Prefect flow: every stage of dvc.yaml in order, then promotion.

DVC decides what needs running and runs it (flows/dvc.py); this flow gives it an order, retries, a log and a place in
Prefect's UI. A run here and `dvc repro` in the same workspace are interchangeable.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed, State
from rich.console import Console
from rich.table import Table

from flows import dvc, leftovers, limits, review
from prm_core.errors import InputError
from prm_core.evaluation.headline import figure_table, headline_figures
from prm_core.platform import command_server, environment, store, tracking, workspace
from prm_core.problems import prepare
from prm_core.stages import base
from prm_core.stages.base import CHAIN

BAD_INPUT = "Bad input"
KILLED = "Killed"
UNREACHABLE = "Unreachable"
STOPPED = "Stopped"
SKIPPED = "Skipped"
# Of the promotion, and of the whole run then: done, and nothing new is served.
CHAMPION_STAYS = "Champion stays"
CHAMPION_STAYED = "ChampionStayed"
# A stage that a signal ended goes on from its last whole shard or checkpoint. Each wait is up to half as long again:
# what one failure has stopped on several machines does not come back all at once.
RETRY_SECONDS = (5.0, 20.0, 80.0)
RETRY_JITTER = 0.5
# The stage that makes the review queue.
REVIEWED = "calibrate"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the summary: what became of a stage."""

    stage: str
    result: str
    seconds: float


def may_pass(_task: object, _run: object, state: State) -> bool:
    """Prefect's retry condition: trying again helps after a kill or while a server is away, not after bad input or a
    bug."""
    return state.name in (KILLED, UNREACHABLE)


step = partial(
    task, cache_policy=NO_CACHE, retries=len(RETRY_SECONDS), retry_delay_seconds=list(RETRY_SECONDS),
    retry_jitter_factor=RETRY_JITTER, retry_condition_fn=may_pass,
)


@step(task_run_name="{name}")
def run_stage(name: str, workplace: dvc.Workplace, known_up_to_date: bool) -> State:
    """One stage of dvc.yaml, if it needs running; its figures become a table artifact.

    The state's name says what happened: Ran, Restored, Up to date; Killed, Unreachable (MLflow's server), Bad input,
    Stopped (by a gate) or Failed, with the reason.
    """
    log = get_run_logger()
    try:
        result = "up to date" if known_up_to_date else dvc.reproduce(name, workplace, log.info)
    except dvc.CommandFailed as failure:
        return failed(f"stage {name}", failure, workplace.folder)
    publish_figures(name, workplace.folder)
    return Completed(name=result.capitalize(), message=f"stage {name}: {result}")


def failed(what: str, failure: dvc.CommandFailed, folder: Path) -> State:
    """A failed state named after the kind of failure, its message the reason."""
    kind = KILLED if failure.killed else BAD_INPUT if failure.bad_input else STOPPED if failure.gate else "Failed"
    if kind in (BAD_INPUT, "Failed") and not tracking.answers(folder):
        kind = UNREACHABLE
    return Failed(name=kind, message=f"{what}: {failure.reason.removeprefix(dvc.GATE).removeprefix(dvc.ERROR)}")


def publish_figures(stage: str, folder: Path) -> None:
    """A stage's metrics.json, where it wrote one, as a Prefect table."""
    path = folder / "artifacts" / stage / "metrics.json"
    if path.exists():
        rows = [{"metric": name, "value": value} for name, value in store.read_json(path).items()]
        key = re.sub(r"[^a-z0-9]+", "-", f"{label(folder)}-{stage}".lower())
        create_table_artifact(table=rows, key=key, description=f"Figures of stage {stage} in {folder}")


def publish_summary(run: Run, state: State) -> None:
    """What the run came to, as a page among Prefect's artifacts, with the report."""
    folder, report = run.workplace.folder, run.workplace.folder / "artifacts/evaluate/report.html"
    text = f"# {label(folder)}: {'failed' if state.is_failed() else state.name.lower()}\n\n{in_words(run, state)}"
    if not state.is_failed():
        text += f"\nReport: [{report}]({report.resolve().as_uri()})\n"
    key = re.sub(r"[^a-z0-9]+", "-", f"{label(folder)}-summary".lower())
    create_markdown_artifact(text, key=key, description=f"What the last run in {folder} came to")


@step(task_run_name="promote")
def promote(workplace: dvc.Workplace) -> State:
    """`prm promote`: the champion moves if the gate holds. A gate that does not is an answer, not a failure."""
    log = get_run_logger()
    code, lines = dvc.run([sys.executable, "-m", "prm_core.cli", "promote"], workplace, log.info)
    said = lines[-1] if lines else f"exit code {code}"
    if code == 0:
        return Completed(name="Done", message=said)
    failure = dvc.CommandFailed(code, said)
    if failure.gate:
        return Completed(name=CHAMPION_STAYS, message=f"the champion stays: {said.removeprefix(dvc.GATE)}")
    return failed("promote", failure, workplace.folder)


@flow(name="pipeline", flow_run_name="{profile}", log_prints=False)
def pipeline(
    profile: str = "default", problems: str | None = None, pause_for_review: bool = False, review_hours: float = 24,
    wait_hours: float | None = None,
) -> State:
    """The whole chain in the workspace of a profile.

    Args:
        profile: a name from prm_core/profiles/, `default`, or the path of a YAML file. Everything a result depends on
            is in the profile, where DVC sees it; hence no other parameter changes what a stage does.
        problems: a JSONL file of your own problems (prompt, answer, perhaps solution).
        pause_for_review: wait for people once the review queue is made, record what they answered, and run again what
            that changes before going on.
        review_hours: how long to wait; then the run fails.
        wait_hours: how long to wait for another run in the same workspace, say one that waits for review, or one that
            registers the same model in a shared store. In a workspace one run waits at a time; a further one, and one
            that has waited so long, ends as Skipped. None: 24 where a deployment started this run; 0 else, and then the
            run is refused.
    """
    root = environment.project_root()
    file = None if problems is None else Path(problems)
    scheduled = deployment.get_id() is not None
    hours = wait_hours if wait_hours is not None else 24 if scheduled else 0
    log = get_run_logger()
    try:
        where = workspace.locate(root, profile, file)
        leftovers.note_this(where)
        for name in leftovers.finish(where):
            log.warning("flow run %s was killed; it is marked as crashed", name)
        with (leftovers.untagged(), command_server.started(),
              workspace.exclusive(where, patience=3600 * hours, say=log.info) as lock):
            base.check(prepare.check(root, profile, file))
            folder = prepare.prepare(root, profile, file)
            with limits.registering(folder, patience=3600 * hours):
                return run_chain(folder, lock, review_hours if pause_for_review else None)
    except workspace.InUse as error:
        return Completed(name=SKIPPED, message=str(error)) if hours else Failed(name=BAD_INPUT, message=str(error))
    except InputError as error:
        return Failed(name=BAD_INPUT, message=str(error))
    except dvc.CommandFailed as failure:
        return Failed(message=failure.reason)


@dataclass(slots=True)
class Run:
    """A run in progress.

    Attributes:
        workplace: where and how commands run; once a stage has to run, under an MLflow run of this flow's own.
        rows: what became of the stages so far.
        state: the last one's.
    """

    workplace: dvc.Workplace
    rows: list[Row] = field(default_factory=list)
    state: State = field(default_factory=Completed)

    def note(self, name: str, state: State, started: float) -> None:
        """Adds a line to the summary."""
        self.state = state
        self.rows.append(Row(name, state.name.lower(), time.monotonic() - started))


def run_chain(folder: Path, lock: int, review_hours: float | None = None) -> State:
    """Every stage in order, then promotion; stops at the first that fails.

    Args:
        review_hours: how long to wait for review after the stage that makes the queue; None: not at all.
    """
    run = Run(dvc.Workplace(folder, lock, {}))
    # What an earlier run left open when it was killed, even where this one has nothing to do.
    tracking.close_abandoned(folder)
    if review_hours is not None:
        run_stages(run, CHAIN[: CHAIN.index(REVIEWED) + 1])
        if not run.state.is_failed():
            wait_for_review(run, review_hours)
    if not run.state.is_failed():
        run_stages(run, CHAIN)
    if not run.state.is_failed():
        started = time.monotonic()
        run.note("promote", promote(run.workplace, return_state=True), started)
    state = run.state
    close_parent_run(run, state)
    publish_summary(run, state)
    show(folder, run.rows, state)
    if state.is_failed():
        return Failed(name=state.name, message=state.message)
    return Completed(name=CHAMPION_STAYED if state.name == CHAMPION_STAYS else "Completed", message=state.message)


def run_stages(run: Run, names: Sequence[str]) -> None:
    """Stages in order, up to the first that fails. What has its line in the summary and is still up to date gets no
    second one."""
    folder = run.workplace.folder
    for stage, path, fault in base.damaged(folder):
        get_run_logger().warning("%s: %s; it is restored or made again", path, fault)
        # DVC goes by a file's size and times, which damage need not change.
        for file in (path, folder / base.sums_path(stage)):
            if file.is_file():
                os.utime(file)
    changed = dvc.changed(folder)
    try:
        workspace.check_data(folder)
    except InputError as error:
        get_run_logger().warning("%s", error)
    done = {row.stage for row in run.rows}
    # Up to the first stage that runs, one look at the graph answers for all of them; after it, each asks again.
    still = True
    for name in names:
        if still and name in changed:
            still = False
            if not run.workplace.environment:
                parent = open_parent_run(folder)
                run.workplace = dvc.Workplace(folder, run.workplace.lock, {tracking.PARENT_RUN: parent})
        if still and name in done:
            continue
        started = time.monotonic()
        state = run_stage(name, run.workplace, known_up_to_date=still, return_state=True)
        run.note(name, state, started)
        if state.is_failed():
            return


def wait_for_review(run: Run, hours: float) -> None:
    """Waits for people and records what they answered."""
    started = time.monotonic()
    try:
        review.wait(run.workplace.folder, hours)
        state = Completed(name="Recorded" if review.record(run.workplace) else "Nothing new")
    except review.NobodyCame as reason:
        state = Failed(name="Waiting for review", message=str(reason))
    except dvc.CommandFailed as failure:
        state = failed("review", failure, run.workplace.folder)
    run.note("review", state, started)


def open_parent_run(folder: Path) -> str:
    """An MLflow run that this flow's stage runs hang under; returns its id."""
    tags = {"flow_run": flow_run.get_id() or "", "profile": label(folder), "git_commit": tracking.code_version(),
            "mlflow.source.name": "prm run"}
    return tracking.start_run(folder, f"{label(folder)} {flow_run.get_name() or ''}".strip(), tags)


def close_parent_run(run: Run, state: State) -> None:
    """Ends the parent run, where there is one, with the headline figures and, in words, what became of the stages."""
    folder, parent = run.workplace.folder, run.workplace.environment.get(tracking.PARENT_RUN)
    if not parent:
        return
    client = tracking.connect(folder)
    client.set_tag(parent, "mlflow.note.content", in_words(run, state))
    for figure in headline_figures(figures(run, state)):
        if figure.value is not None:
            client.log_metric(parent, figure.key, figure.value)
    tracking.end_run(folder, parent, "FAILED" if state.is_failed() else "FINISHED")


def figures(run: Run, state: State) -> dict[str, Any]:
    """Figures of the evaluation; none of a run that failed, since what lies there is of an earlier one."""
    path = run.workplace.folder / "artifacts/evaluate/metrics.json"
    return store.read_json(path) if path.exists() and not state.is_failed() else {}


def in_words(run: Run, state: State) -> str:
    """What a run came to, as Markdown: the outcome first, then the headline figures, then the stages."""
    table = figure_table(figures(run, state))
    stages = [f"| {row.stage} | {row.result} | {row.seconds:.1f} |" for row in run.rows]
    parts = [state.message or "", table, "\n".join(["| stage | result | seconds |", "|---|---|---:|", *stages])]
    return "\n\n".join(filter(None, parts)) + "\n"


def label(folder: Path) -> str:
    """A workspace's name: the profile's (and the problem file's), `default` for the root."""
    return folder.name if folder.parent.name == workspace.RUNS else "default"


def show(folder: Path, rows: list[Row], state: State) -> None:
    """The summary on the terminal: what ran, what it says, where to look."""
    table = Table("stage", "result", "seconds", title=f"{label(folder)} in {folder}", title_justify="left")
    table.columns[2].justify = "right"
    for row in rows:
        table.add_row(row.stage, row.result, f"{row.seconds:.1f}")
    console = Console(soft_wrap=True)
    console.print(table)
    if state.is_failed():
        # Of a pause that ran out Prefect's own state says less.
        console.print(state.message, markup=False)
    if not state.is_failed():
        console.print(f"Report   {folder / 'artifacts/evaluate/report.html'}", markup=False)
        console.print(f"Figures  {folder / 'artifacts/evaluate/metrics.json'}   (or `dvc metrics show`)", markup=False)
        console.print("Runs, models, flows: `make ui`; score: `prm score --help`, `prm serve`", markup=False)

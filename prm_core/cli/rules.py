"""`prm rules`: try a rules file on its own examples, judge runs by it, and train what in it is learned."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prm_core.errors import GateError, InputError

if TYPE_CHECKING:
    from prm_core.rules.constitution import Constitution
    from prm_core.rules.verdicts import Judge as Judging
    from prm_core.serving.service import ScoringRequest

app = typer.Typer(no_args_is_help=True, help="Safety rules as code: try them, judge runs by them, train what is "
                                             "learned.")

Rules = Annotated[str, typer.Argument(help="Path of a YAML file of rules, or the name of a shipped one (errands, "
                                           "agents).")]
Threshold = Annotated[float, typer.Option(min=0.0, max=1.0, help="Probability from which on a rule is taken for "
                                                                 "broken.")]
Judge = Annotated[bool, typer.Option("--judge", help="Ask the judge of the workspace's params.yaml (label.judge) about "
                                                     "rules that are questions.")]
Workspace = Annotated[Path, typer.Option(help="Folder with params.yaml.")]
Lines = Annotated[Path, typer.Argument(help="JSON lines with `prompt` and `steps`, or `messages`, as `prm score` takes "
                                            "them.")]


@app.command()
def check(rules: Rules, threshold: Threshold = 0.5, judge: Judge = False, workspace: Workspace = Path(".")) -> None:
    """Read a rules file, and judge the examples that it gives: its tests.

    Exit code 2 for a file that is none, with a line for each fault; 1 where an example is judged otherwise than it
    says, or a rule has no right or no wrong one; 0 where all is as it says.
    """
    from prm_core.rules.constitution import find, load
    from prm_core.rules.examples import try_examples

    found = load(find(rules), trained=False)
    tried = try_examples(found, threshold, _judge(workspace) if judge else None)
    for line in tried.skipped:
        typer.echo(f"not tried: {line}")
    if tried.failed:
        raise GateError("\n".join([*tried.failed, f"{found.path}: {len(tried.failed)} faults; correct the rules or the "
                                                  "examples"]))
    typer.echo(f"{found.path}: {len(found.rules)} rules, {tried.passed} examples judged as they say, version "
               f"{found.version}")


@app.command("judge")
def judge_runs(
    rules: Rules, file: Lines,
    out: Annotated[Path | None, typer.Option(help="Where the lines go; default: standard output.")] = None,
    threshold: Threshold = 0.5, judge: Judge = False, workspace: Workspace = Path("."),
) -> None:
    """Judge every step of recorded runs: each line comes back with `violations`, no model is needed for predicates."""
    import json

    from prm_core.platform import store
    from prm_core.rules.verdicts import Overseer

    overseer = Overseer(_load(rules), threshold, _judge(workspace) if judge else None)
    rows = list(_requests(file))
    said = overseer.breaks([(request.prompt, request.steps) for _, request in rows])
    text = "".join(json.dumps({**record, "violations": [
        {"step_index": index, "rule": one.rule.id, "severity": one.rule.severity, "probability": one.probability,
         "reason": one.reason, **one.told()} for index, step in enumerate(chain) for one in step]}, ensure_ascii=False)
        + "\n"
        for (record, _), chain in zip(rows, said, strict=True))
    if out is None:
        sys.stdout.write(text)
    else:
        store.write_text(out, text)
    broken = sum(any(chain) for chain in said)
    typer.echo(f"{broken} of {len(rows)} runs break a rule", err=True)


@app.command()
def fit(
    rules: Rules, file: Lines,
    rule: Annotated[str, typer.Option(help="Id of a rule that has a `classifier` or a `calibration`; that file is "
                                           "written.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of questions a classifier is calibrated on.")] = 0,
    workspace: Workspace = Path("."),
) -> None:
    """Train a rule's classifier, or calibrate the judge that a rule asks, from runs whose steps people have marked.

    A line has `broken` too: an object of rule ids, each with the indices (from 0) of the steps that break it, an empty
    list where none does. Runs without the rule's id in it are left out. Of a classifier a quarter of the questions
    calibrates what was learned from the others; the judge (label.judge of the workspace) is asked about every marked
    step, and what its confidence is worth is written down.
    """
    from prm_core.platform import store
    from prm_core.rules import calibration, classifier
    from prm_core.rules.constitution import find, load

    found = load(find(rules), trained=False)
    chosen = next((one for one in found.rules if one.id == rule and one.file), None)
    if chosen is None:
        raise InputError(f"--rule {rule}: {found.path} has no such rule with a `classifier` or a `calibration`; it has "
                         f"{', '.join(one.id for one in found.rules if one.file) or 'none'}")
    cases, broken, groups = [], [], []
    for record, request in _requests(file):
        marked = _marked(record, rule, request)
        for index in range(len(request.steps)) if marked is not None else ():
            cases.append((request.prompt, request.steps[: index + 1]))
            broken.append(index in (marked or ()))
            groups.append(request.prompt)
    if not cases:
        raise InputError(f"{file}: no line has {rule!r} in `broken`; mark runs for it")
    steps = f"from {sum(broken)} steps that break {rule} and {len(broken) - sum(broken)} that do not"
    if chosen.way == "classifier":
        made = classifier.fit(cases, broken, groups, seed).to_json()
        told = f"{steps}; calibrated on the questions held out"
    else:
        # Before the judge is asked, which costs.
        calibration.check_enough(broken)
        judge = _judge(workspace)
        said = [probability for probability, _ in judge.ask([(chosen.source, case) for case in cases])]
        fitted = calibration.fit(said, broken, chosen.source, judge.name)
        made, most = fitted.to_json(), max(said)
        told = (f"{steps}; where the judge {judge.name} is surest that it is broken ({most:.2f}), it is with "
                f"probability {fitted.apply(most):.2f}")
    path = found.path.parent / chosen.file
    store.write_text(path, made)
    typer.echo(f"{path}: {told}")


def _load(rules: str) -> Constitution:
    from prm_core.rules.constitution import find, load

    return load(find(rules))


def _judge(workspace: Path) -> Judging:
    from prm_core import config as configuration
    from prm_core.labeling.rule_judge import judge_of

    config = configuration.load(workspace)
    return judge_of(config.label.judge, config.models)


def _requests(file: Path) -> Iterator[tuple[dict[str, Any], ScoringRequest]]:
    """Lines with the runs in them. Raises InputError naming the line."""
    from prm_core.platform import store
    from prm_core.serving.service import parse_request

    for where, record in store.read_json_lines(file):
        yield record, parse_request(record, where)


def _marked(record: dict[str, Any], rule: str, request: ScoringRequest) -> list[int] | None:
    """The steps that are marked, None where nobody looked."""
    given = record.get("broken", {})
    steps = given.get(rule) if isinstance(given, dict) else given
    if not isinstance(given, dict) or not (steps is None or (isinstance(steps, list) and all(
            type(one) is int and 0 <= one < len(request.steps) for one in steps))):
        raise InputError(f"{request.where}: `broken` must be an object of rule ids, each with a list of indices of "
                         f"steps, from 0 to {len(request.steps) - 1}")
    return steps

"""`prm rules`: try a rules file on its own examples, judge runs by it, and train what in it is learned."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Safety rules as code: try them, and train those that are learned.")

Rules = Annotated[str, typer.Argument(help="Path of a YAML file of rules, or the name of a shipped one (errands, "
                                           "agents).")]
Threshold = Annotated[float, typer.Option(min=0.0, max=1.0, help="Probability from which on a rule is taken for "
                                                                 "broken.")]


@app.command()
def check(rules: Rules, threshold: Threshold = 0.5) -> None:
    """Read a rules file, and judge the examples that it gives: its tests.

    Exit code 2 for a file that is none, with a line for each fault; 1 where an example is judged otherwise than it
    says, or a rule has no right or no wrong one; 0 where all is as it says.
    """
    from prm_core.errors import GateError
    from prm_core.rules import constitution
    from prm_core.rules.examples import try_examples

    found = constitution.load(constitution.find(rules), trained=False)
    tried = try_examples(found, threshold)
    for line in tried.skipped:
        typer.echo(f"not tried: {line}")
    if tried.failed:
        raise GateError("\n".join([*tried.failed, f"{found.path}: {len(tried.failed)} faults; correct the rules or the "
                                                  "examples"]))
    typer.echo(f"{found.path}: {len(found.rules)} rules, {tried.passed} examples judged as they say, version "
               f"{found.version}")

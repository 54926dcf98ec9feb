"""A comparison of judges as tables and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prm_core.evaluation.judges.comparison import ALWAYS_RIGHT, GUESS

if TYPE_CHECKING:
    from rich.table import Table

HEADERS = {"step_accuracy": "steps right", "balanced_accuracy": "balanced", "first_error_accuracy": "1st error",
           "first_error_f1": "1st error F1"}
# Lines for each judge: kinds of steps, and examples.
SHOWN = 3


def _percent(estimate: Mapping[str, float] | None, sign: str = "") -> str:
    if estimate is None:
        return "-"
    value, low, high = (f"{100 * estimate[part]:{sign}.1f}" for part in ("value", "low", "high"))
    return f"{value}\n{low}{', ' if sign else '-'}{high}"


def _table(title: str, headers: list[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 0, 0, 1))
    # The floors' names in one line, however narrow the terminal.
    table.add_column("judge", overflow="fold", min_width=max(map(len, (ALWAYS_RIGHT, GUESS))))
    for header in headers:
        table.add_column(header, justify="right")
    return table


def tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """The judges with the floors, then what they cost, then each beside the first."""
    judges = found["judges"]
    right = _table("How right, per cent (95 % interval)", [*HEADERS.values(), "judged"])
    for name, one in (*judges.items(), *((name, {"figures": row}) for name, row in found["floors"].items())):
        judged = one["figures"].get("judged")
        right.add_row(name, *(_percent(one["figures"].get(key)) for key in HEADERS),
                      "-" if judged is None else f"{100 * judged['value']:.1f}")
    yield right
    cost = _table("How steady over repeats; tokens, price and ms of a trajectory", [
        "kept", "alpha", "read", "written", "price", "median", "p95"])
    for name, one in judges.items():
        steady = [one["agreement"]["kept"], one["agreement"]["alpha"]]
        cost.add_row(name, *("-" if value is None else f"{value:.3f}" for value in steady),
                     *(f"{one['cost'][what]['value']:.0f}" for what in ("tokens_read", "tokens_written")),
                     f"{one['cost']['price']['value']:.3g}",
                     *(f"{1000 * one['latency'][what]['value']:.3g}" for what in ("median", "p95")))
    yield cost
    others = {name: one for name, one in judges.items() if "minus_first" in one}
    if others:
        beside = _table(f"Minus {found['first']}, points (95 % interval)", [*HEADERS.values()])
        for name, one in others.items():
            beside.add_row(name, *(_percent(one["minus_first"].get(key), "+") for key in HEADERS))
        yield beside


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Where the first judge loses to each other one, by kind of step and with the worst examples."""
    first = found["first"]
    for name, one in found["judges"].items():
        lost = one.get("first_loses")
        if not lost or not lost["lost"]:
            continue
        yield (f"Where {first} is wrong and {name} right: {lost['lost']} of {lost['steps']} steps (the other way round "
               f"{lost['won']}, both wrong {lost['both_wrong']})")
        for kind, values in lost["by_kind"].items():
            most = [f"{value} {counts['lost']} of {counts['steps']}" for value, counts in values.items()
                    if counts["lost"]][:SHOWN]
            yield f"  by {kind}: {', '.join(most)}"
        for example in lost["worst"][:SHOWN]:
            score = "no score" if example["score"] is None else f"{example['score']:.3f}"
            why = f" ({example['other_reason']})" if example["other_reason"] else ""
            yield (f"  {example['trajectory']} step {example['step']}, {'right' if example['gold'] else 'wrong'}, "
                   f"{first} {score}{why}: {example['text'][:80]}")

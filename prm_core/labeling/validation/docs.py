"""Data docs: Great Expectations' result pages made to open offline, and the index page in front of them.

Its own pages load styles, scripts and a logo from eight hosts when opened; ours load nothing, so that they look the
same without a network and tell nobody that they were opened.
"""

from __future__ import annotations

import copy
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.render.view import DefaultJinjaPageView

    from prm_core.labeling.validation.drift import Drift
    from prm_core.labeling.validation.report import Check, Report

# What Great Expectations' markup needs of Bootstrap and Font Awesome to be read, and the index page's own look.
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }
a { color: #0b5cad; text-decoration: none; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 1.4rem 0 0.3rem; }
h5, h6 { font-size: 1rem; margin: 0.3rem 0; }
table { border-collapse: collapse; margin: 0.4rem 0; }
td, th { border: 1px solid #d4d4d4; padding: 0.25rem 0.6rem; text-align: left; vertical-align: top; }
th { background: #f1f3f5; }
.alert { background: #eef1f4; padding: 0.4rem 0.8rem; border-radius: 4px; margin-top: 1rem; }
.badge { background: #e2e6ea; border-radius: 3px; padding: 0 0.3rem; font-family: ui-monospace, monospace; }
.text-danger, .failed { color: #b3261e; } .text-success, .held { color: #1c7c3c; }
.fa-times::before { content: "✗"; } .fa-check-circle::before { content: "✓"; }
.fa-exclamation-triangle::before { content: "!"; }
i { font-style: normal; font-weight: bold; }
nav, .card, footer, .cooltip .top, [data-toggle="collapse"], .collapse { display: none; }
.failed, .held { white-space: nowrap; }
.share { padding: 0.1rem 0.4rem; border-radius: 3px; white-space: nowrap; }
small { color: #666; } p { max-width: 70rem; }
@media (max-width: 700px) { body { margin: 0.8rem; } td, th { padding: 0.2rem 0.3rem; overflow-wrap: anywhere; } }
"""
# Great Expectations escapes some of what it shows and not the rest. So what could be markup goes through its renderer
# as letters that no label holds (Gothic ones, which Python's repr leaves alone), and is escaped afterwards, once.
_SHIELDS = {character: chr(0x10330 + number) for number, character in enumerate("&<>\"'$")}
_HEAD = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="UTF-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
    "<style>{style}</style></head>"
)


def localised(page: str, title: str) -> str:
    """A page of Great Expectations with every script and remote resource taken out and our style put in."""
    body = page[page.index("<body"):]
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)
    body = re.sub(r"<(?:img|link)\b[^>]*>", "", body)
    # Links to pages of a site that is not built here keep their text.
    body = re.sub(r'<a\b[^>]*href="(?:\.\./|https?:)[^>]*>(.*?)</a>', r"\1", body, flags=re.DOTALL)
    top = f'<p><a href="index.html">All expectations</a></p><h1>{html.escape(title)}</h1>'
    body = body.replace("<body>", f"<body>{top}")
    return _HEAD.format(title=html.escape(title), style=_STYLE) + body


def render(result: ExpectationSuiteValidationResult) -> str:
    """The result page of one table, self-contained."""
    from great_expectations.render.renderer import ValidationResultsPageRenderer

    shielded = copy.deepcopy(result)
    for single in shielded.results:
        single.result = _shield(single.result)
        single.exception_info = _shield(single.exception_info)
        single.expectation_config.kwargs = _shield(single.expectation_config.kwargs)
        single.expectation_config.meta = _shield(single.expectation_config.meta)
    page = _view().render(ValidationResultsPageRenderer().render(shielded))
    for character, shield in _SHIELDS.items():
        page = page.replace(shield, html.escape(character))
    return localised(page, f"Expectations on {result.suite_name}")


@cache
def _view() -> DefaultJinjaPageView:
    """One for all pages: each new one compiles its templates anew, which takes longer than filling them."""
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def _shield(value: Any) -> Any:
    """A nest of plain values with every text in it, names too, shielded from being read as markup."""
    if isinstance(value, str):
        return value.translate(str.maketrans(_SHIELDS))
    if isinstance(value, Mapping):
        return {_shield(name): _shield(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(map(_shield, value))
    # NumPy's scalars show what they are, not what they say.
    return value.item() if hasattr(value, "item") else value


def index_page(report: Report) -> str:
    """The front page: the expectations that fail, by their stable names; what each strategy says, how far every pair
    agrees, how the labels differ from the previous run's, the other dataset-level figures; the expectations that
    hold."""
    checks = report.checks
    failing, holding = ([c for c in checks if c.success == success] for success in (False, True))
    sections = [f"<h1>Label validation: {len(failing)} of {len(checks)} expectations fail</h1>"]
    sections += [_expectations(failing)] if failing else []
    if report.figures:
        strategies = [name.split("/")[1] for name in report.figures if name.startswith("reach/")]
        rest = {name: value for name, value in report.figures.items() if "/" not in name}
        sections += [
            "<h2>Strategies</h2>", _strategies(report.figures, strategies),
            "<h2>Agreement</h2>", _agreement(report.figures, strategies),
            "<h2>Drift</h2>", _drift(report.drift),
            "<h2>Merged labels</h2>", _table([], [[name, _figure(value)] for name, value in rest.items()]),
        ]
    sections += ["<h2>Expectations that hold</h2>", _expectations(holding)] if holding else []
    return _HEAD.format(title="Label validation", style=_STYLE) + f"<body>{''.join(sections)}</body></html>\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, escaped unless they are Markup."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>" if head else f"<table>{body}</table>"


def _expectations(checks: Sequence[Check]) -> str:
    rows = []
    for check in sorted(checks, key=lambda c: c.table != "summary"):
        verdict = Markup('<span class="held">✓ holds</span>' if check.success else
                         '<span class="failed">✗ fails</span>')
        observed = _figure(check.observed) if isinstance(check.observed, float | int) else check.observed or ""
        link = Markup('<a href="{0}.html">{0}</a>').format(check.table)
        rows.append([verdict, link, check.name, check.column, "critical" if check.critical else "", observed,
                     check.bound])
    return _table(["", "table", "expectation", "on", "", "observed", "demanded"], rows)


def _strategies(figures: Mapping[str, float | None], strategies: Sequence[str]) -> str:
    shown = {"reach": "steps with a row", "coverage": "asked steps* with a verdict",
             "abstention": "rows without a verdict*",
             "correct_share": "verdicts that say right", "completeness": "rows of the chains it took up"}
    rows = [[name, *(_percent(figures[f"{figure}/{name}"]) for figure in shown)] for name in strategies]
    reach, coverage = figures["completeness/merged"], figures["coverage"]
    merged = [reach, coverage, 1 - coverage, figures["correct_share"], reach]
    return _table(["", *shown.values()], [*rows, ["merged", *map(_percent, merged)]]) + (
        "<p><small>* Steps up to the first one of a chain that is called wrong, by the merged labels for coverage and "
        "agreement, by the strategy itself for its abstention: nothing is asked of the steps after it.</small></p>")


def _agreement(figures: Mapping[str, float | None], strategies: Sequence[str]) -> str:
    """A symmetric matrix: share of equal verdicts, darker the higher, and the steps it is a share of."""
    def cell(a: str, b: str) -> str | Markup:
        if a == b:
            return ""
        key = f"{a}/{b}" if f"agreement/{a}/{b}" in figures else f"{b}/{a}"
        share, steps = figures[f"agreement/{key}"], figures[f"agreement_steps/{key}"]
        if share is None:
            return "no step in common"
        return Markup('<span class="share" style="background:rgba(0,114,178,{:.2f})">{}</span> <small>of {:.0f} steps'
                      "</small>").format(0.5 * share, _percent(share), steps)

    return _table(["same verdict", *strategies], [[a, *(cell(a, b) for b in strategies)] for a in strategies])


def _drift(drift: Drift) -> str:
    if drift.previous is None:
        return f"<p>Not compared: {escape(drift.reason)}.</p>"
    names = dict.fromkeys(shift.strategy for shift in drift.shifts)
    by_key = {(shift.strategy, shift.of): shift for shift in drift.shifts}

    def cell(name: str, of: str) -> str | Markup:
        shift = by_key.get((name, of))
        if shift is None:
            return "undefined"
        if shift.chance is None:
            return f"{shift.amount:+.4f}"
        return Markup("{:.4f} <small>(chance {:.4f})</small>").format(shift.amount, shift.chance)

    text = (f"Compared with run {drift.previous.run_id} of {drift.previous.date}: Jensen-Shannon divergence (base 2, 0 "
            "equal, 1 disjoint) of verdicts right, wrong, none and of values in ten bins, beside what sampling alone "
            "would give; mean confidence now minus before.")
    lone = [f" {where}: {', '.join(found)}." for where, found in
            (("Only in this run", drift.only_now), ("Only in that run", drift.only_before)) if found]
    table = _table(["", "verdicts", "values", "mean confidence"],
                   [[name, *(cell(name, of) for of in ("verdicts", "values", "confidence"))] for name in names])
    return f"<p>{escape(text + ''.join(lone))}</p>{table}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

"""Data docs: Great Expectations' result pages made to open offline, and the index page in front of them.

Its own pages load styles, scripts and a logo from eight hosts when opened; ours load nothing, so that they look the
same without a network and tell nobody that they were opened.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult

    from prm_core.labeling.validation import Check

# What Great Expectations' markup needs of Bootstrap and Font Awesome to be read, and the index page's own look.
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }
a { color: #0b5cad; text-decoration: none; }
h1 { font-size: 1.4rem; } h5, h6 { font-size: 1rem; margin: 0.3rem 0; }
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
"""
_HEAD = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="UTF-8"><title>{title}</title>'
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
    from great_expectations.render.view import DefaultJinjaPageView

    page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result))
    return localised(page, f"Expectations on {result.suite_name}")


def index_page(checks: list[Check], figures: Mapping[str, float | None]) -> str:
    """The front page: every expectation by its stable name, failures first, and the dataset-level figures."""
    rows = []
    for check in sorted(checks, key=lambda c: (c.success, c.table != "summary")):
        verdict = '<span class="held">✓ holds</span>' if check.success else '<span class="failed">✗ fails</span>'
        observed = _figure(check.observed) if isinstance(check.observed, float | int) else check.observed or ""
        cells = [check.name, check.column, "critical" if check.critical else "", observed, check.bound]
        link = f'<a href="{check.table}.html">{check.table}</a>'
        rows.append(f"<tr><td>{verdict}</td><td>{link}</td>"
                    + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{t}</th>" for t in ("", "table", "expectation", "on", "", "observed", "demanded"))
    shown = "".join(f"<tr><td>{html.escape(k)}</td><td>{_figure(v)}</td></tr>" for k, v in figures.items())
    failed = sum(not check.success for check in checks)
    return (
        _HEAD.format(title="Label validation", style=_STYLE)
        + f"<body><h1>Label validation: {failed} of {len(checks)} expectations fail</h1>"
        + f"<table><tr>{head}</tr>{''.join(rows)}</table><h1>Figures</h1><table>{shown}</table></body></html>\n"
    )


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

"""Equality of two constant LaTeX expressions by sympy, in a process that can be killed: no time or memory runs away."""

from __future__ import annotations

import json
import logging
import select
import subprocess
import sys
import weakref
from collections.abc import Sequence

from prm_core.maths import sympy_worker
from prm_core.maths.equations import Equation, Token

log = logging.getLogger(__name__)
START_SECONDS = 60.0
_LATEX = {"*": r"\cdot", "**": "^", "π": r"\pi"}


def needs_sympy(equation: Equation) -> bool:
    """Whether a side holds a root, a logarithm, a binomial coefficient or π."""
    return any(token.kind == "function" for side in (equation.left, equation.right) for token in side)


def to_latex(tokens: Sequence[Token]) -> str:
    """A side as LaTeX, without its units, products written out: the parser misreads `2\\binom{3}{2}`."""
    parts: list[str] = []
    before = ""
    for token in tokens:
        if token.kind in ("unit", "currency"):
            continue
        if token.kind == "function" and before in ("number", "close"):
            parts.append(r"\cdot")
        parts.append(_LATEX.get(token.text, token.text.replace(",", "")))
        before = token.kind
    return " ".join(parts)


class SympyProcess:
    """A process that compares expressions, started at the first question and again after it had to be killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def equal(self, left: str, right: str, timeout: float) -> bool | None:
        """Whether two LaTeX expressions without unknowns are equal; None where sympy cannot say or takes too long.

        Args:
            left, right: the expressions.
            timeout: seconds; starting the process does not count.
        """
        process = self._started()
        if process is None:
            return None
        answer = _ask(process, json.dumps([left, right]), timeout)
        if answer:
            return json.loads(answer)
        log.debug("sympy gave no verdict on %s = %s within %.3g s", left, right, timeout)
        self.close()
        return None

    def close(self) -> None:
        """Ends the process; the next question starts another."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _started(self) -> subprocess.Popen[str] | None:
        if self._process is None:
            # -P: the script's folder stays off the path, its modules would hide others of the same name.
            self._process = subprocess.Popen([sys.executable, "-P", sympy_worker.__file__], stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            weakref.finalize(self, _end, self._process)
            if not _ask(self._process, "", START_SECONDS):
                log.warning("the process for sympy did not start within %.0f s; roots and logarithms get no verdict",
                            START_SECONDS)
                self.close()
        return self._process


def _ask(process: subprocess.Popen[str], question: str, timeout: float) -> str:
    """The next line of the process, after writing it a question where there is one; empty when it ends or is late."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if question:
            process.stdin.write(question + "\n")
            process.stdin.flush()
    except BrokenPipeError:
        return ""
    ready, _, _ = select.select([process.stdout], [], [], max(timeout, 0))
    return process.stdout.readline() if ready else ""


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()

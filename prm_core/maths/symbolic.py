"""Equality of two constant LaTeX expressions by sympy, in a process that can be killed: no time or memory runs away."""

from __future__ import annotations

import json
import logging
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from fractions import Fraction

from prm_core.maths import readings, sympy_worker
from prm_core.maths.equations import Equation, Token
from prm_core.maths.exact import Undecided, as_latex, slack, value_of

log = logging.getLogger(__name__)
START_SECONDS = 60.0


def needs_sympy(equation: Equation) -> bool:
    """Whether a side holds a root, a logarithm, a binomial coefficient or π."""
    return any(token.kind == "function" for side in (equation.left, equation.right) for token in side)


def to_latex(tokens: Sequence[Token]) -> str:
    """A side as LaTeX with its rational parts calculated, every product and bracket written out.

    The parser adds what stands beside each other: it takes `2(3)` for 5 and `\\sqrt{2}(3)` for a sum. Raises Undecided
    where a side has no value.
    """
    return as_latex(value_of(tokens))


class SympyProcess:
    """A process that compares expressions, started at the first question and again after it had to be killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def holds(self, equation: Equation, timeout: float) -> bool | None:
        """`exact.holds` for sides that are no rational numbers; None also after `timeout` seconds.

        Raises Undecided when a side has no value.
        """
        deadline = time.monotonic() + timeout
        left, right = to_latex(equation.left), to_latex(equation.right)
        allowed = slack(equation)
        verdict = self.equal(left, right, timeout, allowed or Fraction(0))
        if verdict is not False:
            return verdict
        if allowed is None:
            return None
        for sides in readings.others(equation):
            try:
                texts = to_latex(sides[0]), to_latex(sides[1])
            except Undecided:
                continue
            if self.equal(*texts, deadline - time.monotonic(), allowed) is not False:
                return None
        return False

    def equal(self, left: str, right: str, timeout: float, slack: Fraction = Fraction(0)) -> bool | None:
        """Whether two LaTeX expressions without unknowns are equal; None where sympy cannot say or takes too long.

        Args:
            left, right: the expressions.
            timeout: seconds; starting the process does not count.
            slack: unequal sides less than this apart get None.
        """
        process = self._started()
        if process is None:
            return None
        answer = _ask(process, json.dumps([left, right, str(slack)]), timeout)
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

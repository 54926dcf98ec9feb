"""Standalone script: reads two LaTeX expressions and a slack, one JSON list a line, answers true, false, null.

`symbolic.py` runs it, and kills it where it takes too long. It imports nothing of ours, since it starts by its path,
and sympy only when it runs, since `symbolic.py` imports it to know that path.
"""

import json
import resource
import sys

MEMORY_BYTES = 2 * 1024**3
DIGITS = 40


def equal(left: str, right: str, slack: str) -> bool | None:
    """Whether two constants are equal, exactly: decimals are read as fractions. None for anything else.

    Unequal ones that are less than `slack` apart (a fraction as text) get None too.
    """
    import sympy
    from latex2sympy2_extended import latex2sympy

    sides = []
    for text in (left, right):
        expression = sympy.sympify(latex2sympy(text))
        if not isinstance(expression, sympy.Expr) or expression.free_symbols:
            return None
        exact = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
        sides.append(expression.xreplace(exact).doit())
    difference = sides[0] - sides[1]
    size = abs(complex(difference.evalf(DIGITS)))
    if size > 10.0 ** (8 - DIGITS) * (1 + abs(complex(sides[0].evalf(DIGITS)))):
        return None if size < sympy.Rational(slack) else False
    return True if difference.equals(0) else None


def main() -> None:
    """Answers until the input ends."""
    import latex2sympy2_extended  # noqa: F401  (before the first line says that it is done)

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sys.stdout.write("null\n")  # says that the imports are done
    sys.stdout.flush()
    for line in sys.stdin:
        try:
            answer = equal(*json.loads(line))
        except Exception:  # whatever sympy makes of a text from a model, it is no verdict
            answer = None
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

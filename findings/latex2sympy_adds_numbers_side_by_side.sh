#!/bin/sh
# latex2sympy2_extended 1.11.0 (PyPI), the parser behind math-verify 0.9.0: numbers that stand side by side are added, with
# or without brackets, since any two of them are taken for a mixed number.
#
# One would guess a product, as in every textbook, or an error for two bare numbers. It is a product as soon as a letter or
# a root is among the factors. A mixed number written with a slash is added up as well: 3 1/2 is read as (3 + 1)/2. So a
# grader that compares a right product with its result finds them unequal, and a wrong sum equal.
#
# Seen:
#   2(3) -> 5
#   (2)(3) -> 5
#   2\binom{3}{2} -> 5
#   5 6 -> 11
#   3 1/2 -> 2
#   2x(3) with x for a letter, 2\sqrt{9} -> products
#   math-verify: 6 against 2(3) False, 5 against 2(3) True
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check latex2sympy2_extended==1.11.0 math-verify==0.9.0
cat > look.py <<'PY'
import sympy
from latex2sympy2_extended import latex2sympy
from math_verify import parse, verify

SIDE_BY_SIDE = {"2(3)": 5, "(2)(3)": 5, r"2\binom{3}{2}": 5, "5 6": 11, "3 1/2": 2}
for text, seen in SIDE_BY_SIDE.items():
    value = latex2sympy(text)
    print(text, "->", value)
    assert sympy.simplify(value - seen) == 0, (text, value)
assert sympy.simplify(latex2sympy(r"2\sqrt{9}") - 6) == 0
verdicts = [verify(parse(f"${gold}$"), parse("$2(3)$")) for gold in ("6", "5")]
print("math-verify: 6 against 2(3)", verdicts[0], "and 5 against 2(3)", verdicts[1])
assert verdicts == [False, True], verdicts
PY
env/bin/python look.py

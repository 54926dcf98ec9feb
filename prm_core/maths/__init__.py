"""Answers and equations. Texts in, values and verdicts out: no model, no label, no file.

answers.py reads the answer a text states and compares answers by value; the others find equations in a step
(equations.py) and decide whether they hold (exact.py with rational numbers, symbolic.py with sympy).
"""

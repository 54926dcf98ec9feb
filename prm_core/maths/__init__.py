"""Answers and equations: reading what a text states, comparing by value, deciding whether an equation holds.

Texts in, values and verdicts out: no model, no label, no file.
"""

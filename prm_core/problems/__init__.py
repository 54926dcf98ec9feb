"""The problems a chain works on: made from a seed (embedded.py) or a user's own (own.py), laid out by prepare.py.

What kinds of problems there are is in `prm_core/domains`; step-labelled data of other projects in `prm_core/formats`.
"""

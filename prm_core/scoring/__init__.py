"""Reward models: the kinds of them, scoring whole chains in one pass, calibrated probabilities, other projects' models.

A step's score comes from its head (reward.py) and, where configured, from how surprising its tokens are (surprisal.py).
How they are trained is in `prm_core/training/reward`, how they are served in `prm_core/serving`.
"""

"""Reward models: the kinds of them, scoring whole chains in one pass, calibrated probabilities, other projects' models.

How they are trained is in `prm_core/training/reward`, how they are served in `prm_core/serving`.
"""

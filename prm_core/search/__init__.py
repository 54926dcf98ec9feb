"""Choosing among chains, and among steps while they are written: search methods by name (`base.METHODS`), aggregations
of step scores, best-of-N and votes, each as a pure function too.

Sampling the candidates is in `prm_core/sampling`, scoring them in `prm_core/scoring`.
"""

"""Choosing among chains: from step scores to a chain's, best-of-N, votes. Beams and step-level search go here.

Sampling the candidates is in `prm_core/sampling`, scoring them in `prm_core/scoring`.
"""

"""Training policies with process and outcome rewards: the loops and the losses; advantages are in `advantages`.

The rewards' scores come from `prm_core/scoring`.
"""

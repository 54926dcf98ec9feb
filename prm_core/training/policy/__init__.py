"""Training policies with process and outcome rewards: the loops and the losses; advantages are in `estimators`.

The rewards' scores come from `prm_core/scoring`.
"""

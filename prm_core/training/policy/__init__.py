"""Training policies with process and outcome rewards: losses and advantages as pure functions, loops that use them.

Advantage estimators go here, one function each. The rewards' scores come from `prm_core/scoring`.
"""

"""Advantage estimators, registered by name: from a group's rewards to an advantage for each token. Pure functions.

Light to import, since a config that names one is checked before anything runs: torch is imported in functions.

An estimator is a module of its own with one line below; what it is given and must give is in base.py, its name goes
into `train_policy.estimator`. Sampling the chains, scoring them and the update are the loops' (`training/policy`).
"""

# Imported for their registration, a line each.
from prm_core.training.policy.estimators import hybrid as hybrid
from prm_core.training.policy.estimators.base import ESTIMATORS, Estimator, GroupRewards

__all__ = ["ESTIMATORS", "Estimator", "GroupRewards"]

"""Advantages: from the rewards of groups of chains to an advantage for each token. Pure functions, registered by name.

An advantage is composed: the scores of the steps are paid in a *form* (`forms`), each step is credited with the
rewards of its chain (`compose.CREDITS`), the credit is compared with a *baseline* (`baselines`), divided by a scale,
weighed and added to that of the outcomes; a *filter* (`filters`) says which chains are learned from. Each goes with
each.

Light to import, since a config that names one is checked before anything runs: torch is imported in functions. What a
part is given and must give is in `base`; sampling, scoring and the update are in `training/policy`.
"""

# Imported for their registration.
from prm_core.training.policy.advantages import baselines as baselines
from prm_core.training.policy.advantages import filters as filters
from prm_core.training.policy.advantages import forms as forms
from prm_core.training.policy.advantages.base import BASELINES, FILTERS, FORMS, GroupRewards, Rewards
from prm_core.training.policy.advantages.compose import CREDITS, advantages
from prm_core.training.policy.advantages.placement import placed

__all__ = ["BASELINES", "CREDITS", "FILTERS", "FORMS", "GroupRewards", "Rewards", "advantages", "placed"]

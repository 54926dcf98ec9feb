"""Labelling strategies, registered by name: chains in, at most one label per step out, no gold verdict seen.

A strategy is a module of its own with one line below; what it must give is in base.py. What only they use lives here
too: verdict rules, search trees, uncertainty measures, the judge's clients. How strategies are combined is in
`labeling/merging`, the stage that runs them in `stages/label.py`.
"""

# Imported for their registration.
from prm_core.labeling.strategies import judge, mc_dropout, mcts, rollout, verifier
from prm_core.labeling.strategies.base import (
    STRATEGIES,
    Chain,
    LabelingTools,
    Strategy,
    check_failures,
    label_shard,
)

__all__ = ["STRATEGIES", "Chain", "LabelingTools", "Strategy", "check_failures", "judge", "label_shard", "mc_dropout",
           "mcts", "rollout", "verifier"]

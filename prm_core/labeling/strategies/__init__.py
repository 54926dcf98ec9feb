"""Labelling strategies, registered by name: chains in, at most one label per step out, no gold verdict seen.

A strategy is a module of its own with one line below; what it must give is in base.py. What only they use lives here
too: verdict rules, search trees, uncertainty measures, the judge's clients. How strategies are combined is in
`labeling/merging`, the stage that runs them in `stages/label.py`.
"""

# Imported for their registration, a line each.
from prm_core.labeling.strategies import judge as judge
from prm_core.labeling.strategies import mc_dropout as mc_dropout
from prm_core.labeling.strategies import mcts as mcts
from prm_core.labeling.strategies import rollout as rollout
from prm_core.labeling.strategies import teacher as teacher
from prm_core.labeling.strategies import verifier as verifier
from prm_core.labeling.strategies.base import (
    STRATEGIES,
    Chain,
    LabelingTools,
    Strategy,
    check_failures,
    label_shard,
)

__all__ = ["STRATEGIES", "Chain", "LabelingTools", "Strategy", "check_failures", "label_shard"]

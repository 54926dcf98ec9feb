"""How many chains the labels get wrong, by the merge's own account: an expectation with an interval.

Nobody's judgement enters, so the figure is as good as the model behind the merge; where people have judged the policy's
chains, theirs is the better one (`labeling/calibrate.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prm_core.labeling.merging.first_error import FirstErrorModel

# By what factor the model's doubt may be off, either way: annotators are taken to err independently, and do not quite.
SLACK = 2.0
DRAWS, SEED = 1000, 0


@dataclass(frozen=True, slots=True)
class LabelError:
    """Share of chains whose first error, or its absence, the labels get wrong.

    Attributes:
        chains: of which it is a share.
        share: expected.
        low, high: 95 % interval.
    """

    chains: int
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return (f"of the policy's {self.chains} chains {self.share:.1%} have another first error than their labels say "
                f"(95 % interval {self.low:.1%} to {self.high:.1%}), by the merge's own estimate")


def doubt(model: FirstErrorModel) -> NDArray[np.float64]:
    """P(the first error is not where labels of this model state it), (chains,).

    They state the first step that is more likely wrong than right, given that those before it are right.
    """
    wrong = model.right < 0.5
    said = np.where(wrong.any(1), model.at[np.arange(len(wrong)), wrong.argmax(1)], model.none)
    return np.clip(1 - said, 0.0, 1.0)


def estimate_error(doubts: NDArray[np.float64]) -> LabelError:
    """The expected share of wrongly labelled chains, and an interval: chance in each chain, and SLACK.

    Args:
        doubts: of the chains in question, (chains,), at least one.
    """
    rng = np.random.default_rng(SEED)
    few, many = (np.mean(rng.random((DRAWS, len(doubts))) < np.minimum(doubts * factor, 1.0), axis=1)
                 for factor in (1 / SLACK, SLACK))
    share = float(doubts.mean())
    return LabelError(len(doubts), share, float(min(np.quantile(few, 0.025), share)),
                      float(max(np.quantile(many, 0.975), share)))

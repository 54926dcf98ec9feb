"""Values and advantages under a prover policy: pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


def best_of(values: ArrayLike, samples: int) -> NDArray[np.float64]:
    """Values of the prover that takes the best of `samples` continuations of the policy: 1 - (1 - Q)^samples.

    The policy itself (1) is no prover: its advantages sum to outcome minus the prompt's value whatever the steps were.

    Source: Setlur et al. 2024, "Rewarding Progress", section 4.
    """
    import numpy as np

    return 1 - (1 - np.asarray(values, dtype=np.float64)) ** samples


def step_advantages(values: ArrayLike) -> NDArray[np.float64]:
    """A_k = Q(s_<=k) - Q(s_<k), (..., steps).

    Args:
        values: of the bare prompt, then after each step, (..., steps + 1).
    """
    import numpy as np

    return np.diff(np.asarray(values, dtype=np.float64), axis=-1)

"""Values and advantages under a prover policy: pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import ArrayLike, NDArray


def best_of(values: ArrayLike, samples: int) -> NDArray[np.float64]:
    """Values of the prover that takes the best of `samples` continuations of the policy: 1 - (1 - Q)^samples.

    The policy itself (1) is no prover: its advantages sum to outcome minus the prompt's value whatever the steps were.

    Source: Setlur et al. 2024, "Rewarding Progress", section 4.
    """
    import numpy as np

    return 1 - (1 - np.asarray(values, dtype=np.float64)) ** samples


def advantage_figures(values: Sequence[ArrayLike], samples: int) -> dict[str, float]:
    """What makes a prover worth having, over all steps: whether it tells steps apart, and whether it agrees.

    Args:
        values: of each chain, the policy's value of the bare prompt, then after each step.
        samples: continuations the prover takes the best of.

    Returns:
        variance of the prover's advantages, and mean product of prover's and policy's advantages.

    Source: Setlur et al. 2024, "Rewarding Progress", theorem 3.1.
    """
    import numpy as np

    own = np.concatenate([step_advantages(chain) for chain in values])
    prover = np.concatenate([step_advantages(best_of(chain, samples)) for chain in values])
    return {"advantage_variance": float(prover.var()), "advantage_alignment": float((prover * own).mean())}


def step_advantages(values: ArrayLike) -> NDArray[np.float64]:
    """A_k = Q(s_<=k) - Q(s_<k), (..., steps).

    Args:
        values: of the bare prompt, then after each step, (..., steps + 1).
    """
    import numpy as np

    return np.diff(np.asarray(values, dtype=np.float64), axis=-1)

"""Guards of a policy's training: what in its curves says that the reward is hacked. Pure functions.

A reward model is right about the chains it has seen. A policy that is paid by it writes others before long: the reward
rises, and what it stands for does not (METHODS 4 and 10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from prm_core.config import GuardConfig

Record = Mapping[str, float]
# Standard errors that a fall must exceed beyond what is allowed.
SURE = 2.0


def windows(history: Sequence[Record], size: int) -> list[dict[str, float]]:
    """Means of the records over each `size` updates in a row, of the keys that all records have."""
    keys = [key for key, value in history[0].items() if isinstance(value, int | float)] if history else []
    return [{key: sum(record[key] for record in history[end - size : end]) / size for key in keys}
            for end in range(size, len(history) + 1)]


def alarm(history: Sequence[Record], settings: GuardConfig) -> str | None:
    """Why training should stop after these records, None where nothing speaks for it.

    Compared are the last `window` updates, those with the best outcomes, and the first ones.
    """
    if not settings.window or len(history) < 2 * settings.window:
        return None
    means = windows(history, settings.window)
    first, now = means[0], means[-1]
    best = max(means, key=lambda one: one["reward/outcome"])
    fall = best["reward/outcome"] - now["reward/outcome"]
    # Each update asks other questions, some of which are harder.
    chance = SURE * math.hypot(*(one["reward/outcome_error"] / math.sqrt(settings.window) for one in (best, now)))
    if fall > settings.max_fall + chance and now["reward/process"] >= best["reward/process"]:
        return (f"outcomes fell from {best['reward/outcome']:.3f} to {now['reward/outcome']:.3f} while the process "
                f"reward went from {best['reward/process']:.3f} to {now['reward/process']:.3f}")
    if now["reward/outcome"] - first["reward/outcome"] > settings.max_fall:
        return None
    # Outcomes are where they were: whatever else has moved is not what is wanted.
    for name, what in (("chain/steps", "steps"), ("chain/tokens", "tokens")):
        stretch = now[name] / max(first[name], 1e-9) - 1
        if abs(stretch) > settings.max_stretch:
            return (f"chains went from {first[name]:.1f} to {now[name]:.1f} {what} while outcomes stayed at "
                    f"{now['reward/outcome']:.3f}")
    for name, what in (("chain/repeated_share", "repeat another"), ("chain/nothing_new_share", "say nothing new")):
        if now[name] - first[name] > settings.max_filler:
            return (f"steps that {what} went from {first[name]:.1%} to {now[name]:.1%} while outcomes stayed at "
                    f"{now['reward/outcome']:.3f}")
    return None

"""Guards of a policy's training: what in its curves says that the reward is hacked. Pure functions.

A reward model is right about the chains it has seen. A policy that is paid by it writes others before long: the reward
rises, and what it stands for does not (METHODS 4 and 10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from prm_core.config import GuardConfig

Record = Mapping[str, float]
# Standard errors by which a parting must exceed what is allowed.
SURE = 2.0


def windows(history: Sequence[Record], size: int) -> list[dict[str, float]]:
    """Means of the records over each `size` updates in a row, of the keys that all records have."""
    keys = [key for key, value in history[0].items() if isinstance(value, int | float)] if history else []
    return [{key: sum(record[key] for record in history[end - size : end]) / size for key in keys}
            for end in range(size, len(history) + 1)]


def parting(history: Sequence[Record], size: int) -> tuple[float, float]:
    """By how much outcomes of the last `size` updates fall short of what the process rewards promise, by the updates
    before, and the standard error of that.

    Each update asks other questions, and most of what outcomes differ by is how hard these are. The process reward
    knows much of it: of each update's outcome as much is taken off as questions with such a lowest step had more of
    right answers in the first `2 * size` updates (a control variate; nothing where the two had nothing in common). What
    is left stays where it is as long as a higher reward means as many more right answers as it did.

    Args:
        history: of at least `2 * size` updates.
    """
    known = history[: 2 * size]
    common = sum(one["reward/agreement"] * one["reward/outcome_error"] * one["reward/lowest_error"] for one in known)
    spread = sum(one["reward/lowest_error"] ** 2 for one in known)
    slope = max(0.0, common / spread) if spread else 0.0

    def left(records: Sequence[Record]) -> tuple[float, float]:
        """Mean of what is left, and its squared standard error."""
        squares = (one["reward/outcome_error"] ** 2 + (slope * one["reward/lowest_error"]) ** 2
                   - 2 * slope * one["reward/agreement"] * one["reward/outcome_error"] * one["reward/lowest_error"]
                   for one in records)
        return (sum(one["reward/outcome"] - slope * one["reward/lowest_step"] for one in records) / len(records),
                sum(squares) / len(records) ** 2)

    (before, error), (now, other) = left(history[:-size]), left(history[-size:])
    return before - now, math.sqrt(max(0.0, error + other))


def alarm(history: Sequence[Record], settings: GuardConfig) -> str | None:
    """Why training should stop after these records, None where nothing speaks for it.

    Outcomes are held against what the process rewards promise, see `parting`; steps, tokens and filler of the last
    `window` updates against those of the first ones.
    """
    if not settings.window or len(history) < 2 * settings.window:
        return None
    fall, chance = parting(history, settings.window)
    means = windows(history, settings.window)
    first, now = means[0], means[-1]
    if fall > settings.max_fall + SURE * chance:
        return (f"outcomes are {fall:.3f} below what the process rewards promise by the updates before: they are at "
                f"{now['reward/outcome']:.3f}, after {first['reward/outcome']:.3f} at first, and the mean process "
                f"reward is at {now['reward/process']:.3f}, after {first['reward/process']:.3f}")
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

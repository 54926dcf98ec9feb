"""Rules while a policy learns: which steps of sampled chains break them, and what is told of it. What that does to
advantages is in `advantages/constraint.py`."""

from __future__ import annotations

from collections.abc import Sequence

from prm_core.rules.verdicts import Chain, Overseer

# Of an update's figures: the share of its chains that break a rule, the multiplier of a Lagrangian constraint, and
# whether rules alone were learned.
BROKEN, MULTIPLIER, ALONE = "rules/broken", "rules/multiplier", "rules/alone"
# Of a chain, of each step the ids of the rules that it breaks.
Broken = tuple[tuple[str, ...], ...]


def broken_by(overseer: Overseer, chains: Sequence[Chain]) -> list[Broken]:
    """The rules that each step of each chain breaks."""
    return [tuple(tuple(one.rule.id for one in step) for step in steps) for steps in overseer.breaks(chains)]


def share_broken(chains: Sequence[Broken | None]) -> float:
    """The share of chains that break a rule."""
    return sum(any(chain or ()) for chain in chains) / len(chains)


def rule_figures(chains: Sequence[Broken | None], rules: Sequence[str]) -> dict[str, float]:
    """That share, and of each rule the share that breaks it; nothing without rules."""
    if not rules:
        return {}
    of_chains = [{rule for step in chain or () for rule in step} for chain in chains]
    return {BROKEN: share_broken(chains),
            **{f"rules/{rule}": sum(rule in broken for broken in of_chains) / len(chains) for rule in rules}}

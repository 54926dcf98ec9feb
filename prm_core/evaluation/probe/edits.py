"""How often edits of a chain that should lower its score do not, and edits that should leave it alone raise it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prm_core.evaluation.adversarial.attacks import Attack, attack
from prm_core.evaluation.adversarial.gold_chains import GoldChain
from prm_core.evaluation.adversarial.perturbations import PERTURBATIONS
from prm_core.evaluation.adversarial.suite import SuiteScorer, score_chains

# Another batch rounds scores differently; a difference up to it is none.
EVEN = 1e-3


def edit_figures(scorer: SuiteScorer, chains: Sequence[GoldChain], aggregate: str, seed: int) -> dict[str, float]:
    """`probe/edits/<perturbation>/<figure>`, of the chains that the perturbation has a known effect on.

    Figures: `kept`, the share of damaged chains whose score is no lower than before, or of a harmless edit `raised`,
    the share whose score is higher; `n_chains`, how many there were. `damaging/kept` and `harmless/raised` are shares
    of all edited chains of a kind. What was never measured is left out.

    Args:
        chains: to edit.
        aggregate: from step scores to the chain score.
        seed: decides the edits.
    """
    clean = score_chains(scorer, [(chain.name, chain.prompt, chain.steps) for chain in chains], aggregate).chain
    figures: dict[str, float] = {}
    found: dict[str, list[bool]] = {"damaging/kept": [], "harmless/raised": []}
    for name in PERTURBATIONS:
        tried = [attack(chain, number, name, seed) for number, chain in enumerate(chains)]
        attacks = [one for one in tried if isinstance(one, Attack)]
        edited = score_chains(scorer, [(f"{chains[one.chain].name} ({name})", chains[one.chain].prompt, one.edit.steps)
                                       for one in attacks], aggregate).chain
        before = clean[[one.chain for one in attacks]]
        # A chain that outgrows the model's context has no score to compare.
        both = np.isfinite(before) & np.isfinite(edited)
        change = (edited - before)[both]
        damaging = PERTURBATIONS[name].damaging
        kind = "damaging/kept" if damaging else "harmless/raised"
        fooled = change >= -EVEN if damaging else change > EVEN
        figures[f"probe/edits/{name}/n_chains"] = len(change)
        if len(change):
            figures[f"probe/edits/{name}/{kind.partition('/')[2]}"] = float(fooled.mean())
            found[kind] += fooled.tolist()
    return figures | {f"probe/edits/{kind}": float(np.mean(values)) for kind, values in found.items() if values}

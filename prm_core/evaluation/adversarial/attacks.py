"""Edited chains with a known verdict: who knows what an edit did to a chain, and which edits are left out.

- Damaging edits are made to sound chains only. Where the domain has an oracle it judges the edited chain, and names the
  first wrong step. Elsewhere only an edit that turns a checked true equation of the step into a checked false one
  counts (numbers, operators); exchanged and dropped steps are left to domains with an oracle.
- Harmless edits keep every step and insert others that are right by construction, so the chain keeps its verdict. The
  oracle is not asked: its step language has no words for them.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from prm_core.domains.oracle import ORACLES, first_error
from prm_core.evaluation.adversarial.gold_chains import GoldChain
from prm_core.evaluation.adversarial.perturbations import PERTURBATIONS, Edit
from prm_core.maths.equations import find_equations
from prm_core.maths.exact import Undecided, holds

# Of a chain's possible edits as many are tried until one has a known effect.
MAX_TRIES = 30
# Reasons why a chain is left out of a perturbation.
UNSOUND = "wrong before the edit"
NOWHERE = "nothing to edit"
UNKNOWN = "effect of the edit unknown"


@dataclass(frozen=True, slots=True)
class Attack:
    """An edited chain with a known verdict.

    Attributes:
        chain: index of the chain it was made of.
        edit: the edited chain.
        first_error: index of its first wrong step, -1 when it is sound.
        gold: who says so: `oracle`, `equation`, or `construction` (a harmless edit).
    """

    chain: int
    edit: Edit
    first_error: int
    gold: str



def equations_hold(text: str) -> bool | None:
    """Whether the equations of a step hold: False when one does not, None when none can be checked."""
    verdicts = []
    for equation in find_equations(text):
        try:
            verdicts.append(holds(equation))
        except Undecided:
            verdicts.append(None)
    return False if False in verdicts else True if True in verdicts else None


def judge_damage(chain: GoldChain, edit: Edit) -> tuple[int, str] | None:
    """(first wrong step, who says so) of a sound chain after a damaging edit, None where it is not known to be wrong.

    Raises ValueError for an unsound chain: what an edit does to one is not its own doing.
    """
    if not chain.sound or edit.at is None:
        raise ValueError("damage is judged on sound chains and damaging edits")
    if chain.problem is not None:
        wrong = first_error(ORACLES[chain.problem.domain](chain.problem, edit.steps))
        return (wrong, "oracle") if wrong >= 0 else None
    rewritten = len(edit.steps) == len(chain.steps) and edit.origin == tuple(range(len(chain.steps)))
    if rewritten and equations_hold(chain.steps[edit.at].text) and equations_hold(edit.steps[edit.at].text) is False:
        return edit.at, "equation"
    return None


def attack(chain: GoldChain, number: int, name: str, seed: int) -> Attack | str:
    """The chain under a perturbation, or the reason why it has none.

    Args:
        chain: to edit.
        number: its index, kept in the result.
        name: of the perturbation.
        seed: with the name of perturbation and chain it decides the edit.
    """
    perturbation = PERTURBATIONS[name]
    if perturbation.damaging and not chain.sound:
        return UNSOUND
    proposals = perturbation.propose(chain.steps, random.Random(f"{seed}/{name}/{chain.name}"))
    tried = False
    for edit in itertools.islice(proposals, MAX_TRIES):
        tried = True
        if not perturbation.damaging:
            at = edit.origin.index(chain.first_error) if chain.first_error >= 0 else -1
            return Attack(number, edit, at, "construction")
        known = judge_damage(chain, edit)
        if known is not None:
            return Attack(number, edit, *known)
    return UNKNOWN if tried else NOWHERE

"""What a calculator says of a step's equations, as a term of the step's logit.

A small model does not calculate, whatever it is trained on; a tool does, exactly. Two weights say how far each of its
verdicts moves a step's score, fitted to labels beside what the model itself says (`training/reward/probe.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from prm_core.errors import InputError
from prm_core.maths.equations import MAX_TEXT, find_equations
from prm_core.maths.exact import Undecided, holds

if TYPE_CHECKING:
    from torch import Tensor

# Steps whose verdict is kept: search and training ask of the same ones again and again.
KEPT = 65536
KEY = "arithmetic"


@lru_cache(KEPT)
def equations_hold(text: str) -> bool | None:
    """Whether the equations in a step's text hold that rational numbers decide: False where one does not, None where
    there is none."""
    found = None
    if len(text) > MAX_TEXT:
        return None
    for equation in find_equations(text):
        try:
            verdict = holds(equation)
        except Undecided:
            continue
        if verdict is False:
            return False
        found = found or verdict
    return found


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The term.

    Attributes:
        false: added to the logit of a step with an equation that does not hold.
        true: added to that of one whose equations hold, as far as they can be decided, one at least.
    """

    false: float
    true: float

    def of_text(self, text: str) -> float:
        """The term of a step."""
        verdict = equations_hold(text)
        return 0.0 if verdict is None else self.true if verdict else self.false

    def of_texts(self, texts: Sequence[Sequence[str]], like: Tensor) -> Tensor:
        """The terms of the steps of each row, 0 where there is none, as logits (rows, slots) are."""
        import torch

        found = torch.zeros(like.shape, dtype=torch.float32)
        for row, of_row in enumerate(texts):
            if of_row:
                found[row, : len(of_row)] = torch.tensor([self.of_text(text) for text in of_row])
        return found.to(like.device)

    def to_dict(self) -> dict[str, float]:
        """Plain JSON values; `read` restores the term."""
        return asdict(self)

    @classmethod
    def read(cls, values: Any, path: str) -> Self | None:
        """What `to_dict` gave, None for none. Raises InputError where it is no such thing."""
        if values is None:
            return None
        if not (isinstance(values, dict) and values.keys() == {"false", "true"} and all(
                type(value) in (int, float) for value in values.values())):
            raise InputError(f"{path}/config.json: prm.{KEY} must hold the numbers `false` and `true`; copy the "
                             "model's folder whole or train it again")
        return cls(**values)

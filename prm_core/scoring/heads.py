"""Linear heads beside a process model's own, which read in the same pass what it reads: how the chain will end, and a
committee of the same head fitted to other draws of the training problems, whose spread says how sure a score is.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prm_core.errors import InputError

FILE = "heads.safetensors"
NAMES = ("outcome", "committee")


class Heads(nn.Module):
    """Weights over a step's features (`RewardModel.features`), the last one of each the bias.

    Args:
        outcome: of "the final answer is right", over the features of the chain up to a step, (features + 1,).
        committee: of "the step is right", (members, features + 1); none of them is (0, features + 1).
    """

    def __init__(self, outcome: Tensor, committee: Tensor) -> None:
        super().__init__()
        self.outcome = nn.Parameter(outcome, requires_grad=False)
        self.committee = nn.Parameter(committee, requires_grad=False)

    def outcome_logits(self, chain_features: Tensor) -> Tensor:
        """Logit that the answer is right were the chain to end with a slot's step: (batch, slots)."""
        return chain_features @ self.outcome[:-1] + self.outcome[-1]

    def committee_logits(self, features: Tensor) -> Tensor:
        """Each member's logit that a slot's step is right: (batch, slots, members)."""
        return features @ self.committee[:, :-1].T + self.committee[:, -1]

    def save(self, folder: Path) -> None:
        """Writes the file beside a model's weights."""
        save_file({name: getattr(self, name).data.contiguous() for name in NAMES}, folder / FILE)

    @classmethod
    def load(cls, folder: Path, features: int) -> Heads | None:
        """What `save` wrote; None for a model saved without.

        Raises InputError when the file does not load or is not of a model of so many features.
        """
        path = folder / FILE
        if not path.exists():
            return None
        again = "copy the model's folder whole or train it again"
        try:
            tensors = load_file(path)
            outcome, committee = (tensors[name].float() for name in NAMES)
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"{path}: does not load ({error}); {again}") from error
        if outcome.shape != (features + 1,) or committee.shape[1:] != (features + 1,) or committee.ndim != 2 or not (
                torch.isfinite(outcome).all() and torch.isfinite(committee).all()):
            raise InputError(f"{path}: is not of this model, whose steps have {features} features; {again}")
        return cls(outcome, committee)

"""Scores of served chains that explain how they ended: labels from scores and evidence, scores from labels, in turns.

On traffic unlike what it was trained on the champion's scores say little of where a failed chain went wrong. What such
chains have in common, and successful ones do not, says more. So a head on the champion's backbone, which stays as it
is, is solved for on the labels (`relabel.py`), its scores take the place of the champion's, and so on until nothing
changes: expectation and maximisation, with each chain's first wrong step as what is not seen. What a head says of a
chain is always that of one fitted to other questions; on its own it would only find confirmed what it was told.

Sources: Dempster, Laird & Rubin 1977; Dietterich, Lathrop & Lozano-Pérez 1997 (labels of bags, here chains, that speak
of one instance in them).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prm_core.adaptation.relabel import Chain, find_trust, first_error
from prm_core.adaptation.traffic import Served

if TYPE_CHECKING:
    from torch import Tensor

    from prm_core.scoring.scorer import RewardScorer
    from prm_core.training.examples import Example
    from prm_core.types import Step

FOLDS, TURNS = 2, 40
# Mean change of a step's probability to be the first wrong one below which nothing changes any more.
STILL = 1e-3


@dataclass(frozen=True, slots=True)
class Labelled:
    """Steps that a head is fitted to. Attributes: features: (steps, features) float64; targets, weights: (steps,)."""

    features: Tensor
    targets: Tensor
    weights: Tensor


def refined(
    parent: RewardScorer, served: Sequence[Served], chains: Mapping[str, Chain], held: Collection[str],
    replay: Sequence[Example], counts: Mapping[str, float], ridge: float,
) -> dict[str, Chain]:
    """The chains with scores of heads that were fitted to what is known of chains of other questions.

    Args:
        parent: whose backbone is read, and whose scores are the first.
        served: the chains' trajectories.
        chains: trajectory id → what is known of it.
        held: trajectory ids that no head is fitted to.
        replay: labelled examples that every head is fitted to as well, each once: more would hold back what is new.
        counts: trajectory id → how much it counts; others count for nothing.
        ridge: as `train_prm.head_ridge`.
    """
    from prm_core.platform.progress import track

    taken = [one for one in served if one.trajectory.id in chains]
    read = _features(parent, [(one.problem.prompt, one.trajectory.steps) for one in taken])
    features = {one.trajectory.id: found for one, found in zip(taken, read, strict=True)}
    fold = {one.trajectory.id: zlib.crc32(one.problem.id.encode()) % FOLDS for one in taken}
    taught = [name for name in features if name not in held and counts.get(name)]
    if {fold[name] for name in taught} != set(range(FOLDS)):
        return dict(chains)
    before = _replayed(parent, replay)
    surprisals = parent.model.feature_count - parent.model.network.config.hidden_size
    current: dict[str, Chain] = dict(chains)
    heads: list[Tensor | None] = [None] * FOLDS
    trust, believed = None, dict[str, NDArray[np.float64]]()
    for _ in track(range(TURNS), "labels of served chains", unit="turn"):
        trust = find_trust(list(current.values()), trust)
        found = {name: first_error(current[name], trust) for name in taught}
        if believed and np.mean([np.abs(found[name] - believed[name]).mean() for name in taught]) < STILL:
            break
        believed = found
        for number in range(FOLDS):
            heads[number] = head = _solve(
                [*before, *(_labelled(features[name], found[name], counts[name]) for name in taught
                            if fold[name] != number)], surprisals, ridge, heads[number])
            for name in features:
                if fold[name] == number:
                    logits = features[name] @ head[:-1] + head[-1]
                    current[name] = replace(current[name], scores=logits.sigmoid().tolist())
    return current


def _labelled(features: Tensor, first: NDArray[np.float64], count: float) -> Labelled:
    """A chain's steps, each with the probability that it is right given that those before it are, which is how far it
    counts."""
    import torch

    left = np.maximum(first[::-1].cumsum()[::-1], np.finfo(np.float64).tiny)
    return Labelled(features, torch.from_numpy(np.clip(1 - first[:-1] / left[:-1], 0.0, 1.0)),
                    torch.from_numpy(count * left[:-1]))


def _replayed(parent: RewardScorer, replay: Sequence[Example]) -> Iterable[Labelled]:
    """The labelled steps of examples."""
    import torch

    found = []
    for example, features in zip(replay, _features(parent, [(one.prompt, one.steps) for one in replay]), strict=True):
        rows = [row for row, target in enumerate(example.targets[: len(features)]) if not math.isnan(target)]
        targets = torch.tensor([example.targets[row] for row in rows], dtype=torch.float64)
        found.append(Labelled(features[rows], targets, torch.ones_like(targets)))
    return found


def _features(parent: RewardScorer, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[Tensor]:
    """What a head weighs of each step that fits the context, (steps, features) float64 of each chain."""
    import torch

    from prm_core.models.chains import collate
    from prm_core.platform.progress import track

    encoded = [parent.encoder.encode(prompt, steps, may_be_empty=True) for prompt, steps in chains]
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row].ids))
    found: list[Tensor] = [torch.empty(0)] * len(encoded)
    for start in track(range(0, len(order), parent.batch_size), "features of served chains", unit="pass"):
        rows = order[start : start + parent.batch_size]
        batch = collate([encoded[row] for row in rows], parent.encoder.pad_id).to(parent.model.device)
        with torch.inference_mode():
            read = parent.model.features(batch, whole_chain=False).double().cpu()
        for row, one in zip(rows, read, strict=True):
            found[row] = one[: len(encoded[row].step_ends)].clone()
    return found


def _solve(steps: Iterable[Labelled], surprisals: int, ridge: float, start: Tensor | None) -> Tensor:
    """Weights and bias of a head."""
    import torch

    from prm_core.training.reward.probe import Regression, solve

    features, targets, weights = (torch.cat(part) for part in zip(
        *((one.features, one.targets, one.weights) for one in steps), strict=True))
    data = Regression(features, targets, weights, torch.zeros((0, 2), dtype=torch.int64),
                      torch.zeros(len(features), dtype=torch.int64), surprisals)
    return solve(data, start=start, ridge=ridge)

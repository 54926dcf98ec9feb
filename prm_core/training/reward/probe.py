"""Fitting the surprisal's few weights before training: a convex problem, solved, where gradient steps would creep.

Source: Kumar et al. 2022, "Fine-tuning can distort pretrained features": fit what reads the features first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prm_core.training.reward.trees import Row, collate_trees

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prm_core.scoring.reward import RewardModel

log = logging.getLogger(__name__)
# On weights of standardised features; keeps them finite where one of them tells all targets apart.
RIDGE = 1e-3


def fit_surprisal(
    model: RewardModel, rows: Sequence[Row], *, pad_id: int, rows_per_pass: int, mixed: bool,
    class_weights: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Sets the weights of the surprisal's term, and the head's bias, to those of a logistic regression on these rows.

    Args:
        model: one with a surprisal's term.
        rows: a random part of the training rows.
        pad_id: of the encoder.
        rows_per_pass: rows of a forward pass.
        mixed: compute in bfloat16 what may be.
        class_weights: factors of wrong and right targets, as in the loss.
    """
    import torch

    from prm_core.platform.progress import track

    features, targets, weights = [], [], []
    starts = range(0, len(rows), rows_per_pass)
    for start in track(starts, f"fit surprisal of the {model.kind} model", unit="pass"):
        batch = collate_trees(rows[start : start + rows_per_pass], pad_id).to(model.device)
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=mixed):
            found = model.surprisal_features(batch.chains)
        known = batch.weights > 0
        features.append(found[known].double().cpu())
        targets.append(batch.targets[known].double().cpu())
        weights.append(batch.weights[known].double().cpu())
    target, weight = torch.cat(targets), torch.cat(weights)
    wrong, right = class_weights
    # A target of half and half with unlike factors is one of unlike shares.
    factor = right * target + wrong * (1 - target)
    fitted = logistic_regression(torch.cat(features), right * target / factor, weight * factor)
    with torch.no_grad():
        model.surprisal.weight.copy_(fitted[:-1])
        # Its two logits differ by the bias.
        model.head.bias.copy_(torch.stack([-fitted[-1] / 2, fitted[-1] / 2]))
    log.info("surprisal of the %s model: %s", model.kind, ", ".join(f"{value:.3g}" for value in fitted.tolist()))


def logistic_regression(features: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weights and bias, (features + 1,), of the ridge-penalised weighted logistic regression.

    Args:
        features: (rows, features) float64.
        targets: P(right), hard or soft, (rows,).
        weights: of the rows, (rows,).
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    mean, spread = features.mean(0), features.std(0, correction=0).clamp(min=1e-9)
    scaled = (features - mean) / spread
    solution = torch.zeros(features.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([solution], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = scaled @ solution[:-1] + solution[-1]
        value = binary_cross_entropy_with_logits(logits, targets, weight=weights / weights.sum(), reduction="sum")
        value = value + RIDGE * solution[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    slopes = solution[:-1].detach() / spread
    return torch.cat([slopes, (solution[-1].detach() - slopes @ mean)[None]])

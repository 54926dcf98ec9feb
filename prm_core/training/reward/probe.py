"""Fitting what reads a backbone's features: convex problems, solved, where gradient steps would creep and end elsewhere
for every seed.

Before training, the surprisal's few weights; in place of training, on a backbone that stays as it is, the whole head,
and the further heads beside it (`scoring/heads.py`). Source: Kumar et al. 2022, "Fine-tuning can distort pretrained
features".
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prm_core.training.data_parallel import shared_out
from prm_core.training.trees import Row, collate_trees

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from prm_core.models.chains import ChainBatch
    from prm_core.scoring.arithmetic import Arithmetic
    from prm_core.scoring.reward import RewardModel

log = logging.getLogger(__name__)
# On weights of standardised features. The surprisal's few are the signal, theirs only keeps them finite where one of
# them tells all targets apart; the hidden state's many correct it, and fit the training problems if they may
# (`train_prm.head_ridge`).
SURPRISAL_RIDGE, HIDDEN_RIDGE = 1e-5, 3e-3
# Of a logit, by a calculator's verdict.
MOST_SHIFT = 20.0


@dataclass(frozen=True, slots=True)
class Regression:
    """What a head is fitted to.

    Attributes:
        features: (rows, features) float64, the surprisal's last.
        targets: P(right) or a value, (rows,).
        weights: how often each counts, 0 for a row that is there for its pair alone, (rows,).
        pairs: rows of the chosen and of the rejected step of each preference, (pairs, 2).
        prompts: number of the prompt that each row is of, (rows,).
        surprisals: features that are the surprisal's.
        texts: of the step of each row; empty where nobody asked.
    """

    features: Tensor
    targets: Tensor
    weights: Tensor
    pairs: Tensor
    prompts: Tensor
    surprisals: int
    texts: Sequence[str] = ()

    def drawn(self, generator: torch.Generator) -> Regression:
        """The same with its prompts drawn anew, with replacement, and no pairs."""
        import torch

        count = int(self.prompts.max()) + 1
        times = torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count)
        return replace(self, weights=self.weights * times[self.prompts], pairs=self.pairs[:0])


def read_regression(
    model: RewardModel, rows: Sequence[Row], *, pad_id: int, rows_per_pass: int, mixed: bool, whole_chain: bool,
    text_of: Callable[[Sequence[int]], str] | None = None,
) -> Regression:
    """The features of every slot with a target or a part in a pair. Passes are shared out among processes.

    Args:
        rows: packed training rows.
        pad_id: of the encoder.
        rows_per_pass: rows of a forward pass.
        mixed: compute in bfloat16 what may be.
        whole_chain: see `RewardModel.features`.
        text_of: of a step's tokens, where texts are asked for.
    """
    import torch

    def read(start: int) -> tuple[Tensor, Tensor, Tensor, Tensor, list[tuple[int, ...]], list[str]]:
        """Features, targets, weights, rows of pairs, prompts and texts of a pass."""
        batch = collate_trees(rows[start : start + rows_per_pass], pad_id).to(model.device)
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=mixed):
            found = model.features(batch.chains, whole_chain=whole_chain)
        wanted = batch.weights > 0
        row, chosen, other, rejected = batch.pairs.unbind(1)
        wanted[row, chosen] = wanted[other, rejected] = True
        place = torch.full(wanted.shape, -1, dtype=torch.int64, device=wanted.device)
        place[wanted] = torch.arange(int(wanted.sum()), device=wanted.device)
        pairs = torch.stack([place[row, chosen], place[other, rejected]], dim=1)
        prompts = [batch.prompts[i][j] for i, j in wanted.nonzero().tolist()]
        texts = [text_of(ids) for ids in step_tokens(batch.chains, wanted)] if text_of else []
        return (found[wanted].cpu(), batch.targets[wanted].cpu(), batch.weights[wanted].cpu(), pairs.cpu(), prompts,
                texts)

    features, targets, weights, pairs, prompts, texts = [], [], [], [], [], []
    numbers: dict[tuple[int, ...], int] = {}
    count = 0
    starts = range(0, len(rows), rows_per_pass)
    with shared_out(read, len(starts)) as passes:
        for part in passes.map(starts, f"read features of the {model.kind} model", "pass"):
            features.append(part[0].double())
            targets.append(part[1].double())
            weights.append(part[2].double())
            pairs.append(part[3] + count)
            prompts += [numbers.setdefault(prompt, len(numbers)) for prompt in part[4]]
            texts += part[5]
            count += len(part[0])
    surprisals = model.feature_count - model.network.config.hidden_size
    return Regression(torch.cat(features), torch.cat(targets), torch.cat(weights), torch.cat(pairs),
                   torch.tensor(prompts), surprisals, tuple(texts))


def step_tokens(batch: ChainBatch, wanted: Tensor) -> list[list[int]]:
    """Tokens of the steps of some slots, (batch, slots) bool, without the one that ends each: row by row."""
    found = []
    for ids, steps, slots in zip(batch.ids.cpu(), batch.steps.cpu(), wanted.cpu(), strict=True):
        found += [ids[steps == slot][:-1].tolist() for slot in slots.nonzero()[:, 0].tolist()]
    return found


def fit_arithmetic(data: Regression, class_weights: tuple[float, float] = (1.0, 1.0), ridge: float = HIDDEN_RIDGE
                   ) -> Arithmetic:
    """The calculator's term beside what a model says: of each verdict the shift of the logits under which the steps
    that have it are right as often as their labels say.

    Logits are those of heads solved for on the other half of the prompts: what a head says of the steps that it was
    fitted to leaves the calculator nothing to add.

    Args:
        data: with texts.
        class_weights: factors of wrong and right targets, as in the loss.
    """
    import torch

    from prm_core.scoring.arithmetic import Arithmetic, equations_hold

    logits = torch.zeros_like(data.targets)
    for half in (0, 1):
        here = data.prompts % 2 == half
        others = replace(data, weights=data.weights * ~here, pairs=data.pairs[:0])
        if others.weights.sum() and here.any():
            head = solve(others, class_weights, ridge=ridge)
            logits[here] = data.features[here] @ head[:-1] + head[-1]
    verdicts = [equations_hold(text) for text in data.texts]
    shifts = {}
    for verdict in (False, True):
        rows = torch.tensor([one is verdict for one in verdicts], dtype=torch.bool)
        shifts[verdict] = _shift(logits[rows], data.targets[rows], data.weights[rows])
        log.info("arithmetic: %d steps whose equations are %s, shift %.3g", int(rows.sum()), verdict, shifts[verdict])
    return Arithmetic(shifts[False], shifts[True])


def _shift(logits: Tensor, targets: Tensor, weights: Tensor) -> float:
    """What added to logits makes their mean probability that of the targets, with one more target of each kind at even
    odds, which keeps it finite, and small where there are few; found by halving."""
    import torch

    low, high = -MOST_SHIFT, MOST_SHIFT
    for _ in range(50):
        middle = (low + high) / 2
        excess = float(((torch.sigmoid(logits + middle) - targets) * weights).sum()) + math.tanh(middle / 2)
        low, high = (low, middle) if excess > 0 else (middle, high)
    return (low + high) / 2


def fit_surprisal(model: RewardModel, data: Regression, class_weights: tuple[float, float] = (1.0, 1.0)) -> None:
    """Sets the weights of the surprisal's term, and the head's bias, to those of a logistic regression.

    Args:
        model: one with a surprisal's term.
        data: of a random part of the training rows.
        class_weights: factors of wrong and right targets, as in the loss.
    """
    surprisal = data.features[:, -data.surprisals :]
    fitted = solve(replace(data, features=surprisal), class_weights)
    _set(model, fitted.new_zeros(model.network.config.hidden_size), fitted[:-1], fitted[-1])
    log.info("surprisal of the %s model: %s", model.kind, ", ".join(f"{value:.3g}" for value in fitted.tolist()))


def fit_head(
    model: RewardModel, data: Regression, class_weights: tuple[float, float] = (1.0, 1.0),
    preference_weight: float = 1.0, ridge: float = HIDDEN_RIDGE,
) -> Tensor:
    """Solves for the head and the surprisal's weights, sets them, and returns them with the bias, (features + 1,)."""
    fitted = solve(data, class_weights, preference_weight, ridge=ridge)
    width = model.network.config.hidden_size
    _set(model, fitted[:width], fitted[width:-1], fitted[-1])
    return fitted


def _set(model: RewardModel, hidden: Tensor, surprisal: Tensor, bias: Tensor) -> None:
    import torch

    with torch.no_grad():
        # The head's two logits differ by the step's.
        model.head.weight.copy_(torch.stack([-hidden / 2, hidden / 2]))
        model.head.bias.copy_(torch.stack([-bias / 2, bias / 2]))
        if model.surprisal is not None:
            model.surprisal.weight.copy_(surprisal)


def fit_committee(data: Regression, members: int, start: Tensor, seed: int,
                  class_weights: tuple[float, float] = (1.0, 1.0), ridge: float = HIDDEN_RIDGE) -> Tensor:
    """Heads fitted to draws of the training prompts with replacement, (members, features + 1).

    Args:
        start: where each is looked for from: the head of all prompts.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    draws = [data.drawn(generator) for _ in range(members)]
    with shared_out(lambda number: solve(draws[number], class_weights, start=start, ridge=ridge),
                    members) as solvers:
        found = list(solvers.map(range(members)))
    return torch.stack(found) if found else start.new_zeros((0, len(start)))


def solve(
    data: Regression, class_weights: tuple[float, float] = (1.0, 1.0), preference_weight: float = 0.0,
    start: Tensor | None = None, ridge: float = HIDDEN_RIDGE,
) -> Tensor:
    """Weights and bias, (features + 1,): the ridge-penalised weighted logistic regression, and the preferences' loss.

    Args:
        preference_weight: of the mean Bradley-Terry loss of the pairs.
        start: where it is looked for from; the problem is convex, so that it only takes longer elsewhere.
        ridge: on the hidden state's weights.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

    wrong, right = class_weights
    # A target of half and half with unlike factors is one of unlike shares.
    factor = right * data.targets + wrong * (1 - data.targets)
    targets, weights = right * data.targets / factor, data.weights * factor
    weights = weights / weights.sum()
    features = data.features
    mean, spread = features.mean(0), features.std(0, correction=0).clamp(min=1e-9)
    scaled = (features - mean) / spread
    ridges = torch.full((features.shape[1],), ridge, dtype=torch.float64)
    ridges[features.shape[1] - data.surprisals :] = SURPRISAL_RIDGE
    solution = torch.zeros(features.shape[1] + 1, dtype=torch.float64)
    if start is not None:
        solution = torch.cat([start[:-1] * spread, (start[-1] + start[:-1] @ mean)[None]])
    solution.requires_grad_(True)
    optimizer = torch.optim.LBFGS([solution], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-9,
                                  tolerance_change=1e-12)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = scaled @ solution[:-1] + solution[-1]
        value = binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="sum")
        value = value + (ridges * solution[:-1].square()).sum()
        if preference_weight and len(data.pairs):
            chosen, rejected = logits[data.pairs].unbind(1)
            value = value - preference_weight * logsigmoid(chosen - rejected).mean()
        value.backward()
        return value

    optimizer.step(loss)
    slopes = solution[:-1].detach() / spread
    return torch.cat([slopes, (solution[-1].detach() - slopes @ mean)[None]])

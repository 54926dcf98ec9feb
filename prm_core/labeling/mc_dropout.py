"""MC dropout: how uncertain the backbone is of a step when dropout perturbs it, mapped to P(step right)."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence

import numpy as np

from prm_core.errors import InputError
from prm_core.labeling.base import STRATEGIES, Chain, LabelingTools, Strategy
from prm_core.models.encoder import EncodedChain
from prm_core.types import StepLabel

log = logging.getLogger(__name__)
NAME = "mc_dropout"


class McDropoutLabeler(Strategy):
    """Labels steps by their predictive uncertainty over passes with dropout.

    The uncertainty of a step is that of its least expected token: minus the log of the token's probability averaged
    over the passes (the Bayesian predictive of Gal & Ghahramani). It covers both what the backbone would not have
    written and what it is unsure of. The mere spread over passes does not: a token that is confidently wrong has a
    probability near 0 in every pass. How much uncertainty still means "right" is no constant: an isotonic, falling map
    to P(right) is fitted on outcomes alone, since a chain whose most uncertain step is right mostly ends right
    (`prepare`). No human label and no other strategy's verdict enters.
    """

    def __init__(self, tools: LabelingTools) -> None:
        super().__init__(tools)
        self.settings = tools.config.label.mc_dropout
        self.knots: tuple[np.ndarray, np.ndarray] | None = None

    def prepare(self, chains: Sequence[Chain], seed: int) -> None:
        """Fits the map on a seeded sample of chains with outcomes.

        When they all end alike there is nothing to tell apart: the strategy warns and abstains from every step.
        """
        from sklearn.isotonic import IsotonicRegression

        known = [chain for chain in chains if chain.trajectory.outcome is not None]
        count = min(self.settings.fit_chains, len(known))
        sample = random.Random(f"{NAME}/{seed}").sample(known, count)
        # One that does not encode fails in `label`, where it is counted.
        sample = [chain for chain in sample if self._encodes(chain)]
        outcomes = np.array([bool(chain.trajectory.outcome) for chain in sample])
        if outcomes.all() or not outcomes.any():
            log.warning("%s abstains: the %d chains sampled to fit it all end alike; generate more, or leave the "
                        "strategy out of label.strategies", NAME, count)
            return
        worst = np.array([steps.max() for steps in self.uncertainties(sample, seed)])
        fitted = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(worst, outcomes)
        # A share of 0 or 1 among some hundred chains is not certainty: Laplace's rule bounds it.
        bound = 1.0 / (count + 2)
        self.knots = fitted.X_thresholds_, np.clip(fitted.y_thresholds_, bound, 1 - bound)
        log.info("%s: P(right) falls from %.2f to %.2f over uncertainties of %.3f to %.3f nats", NAME, self.knots[1][0],
                 self.knots[1][-1], self.knots[0][0], self.knots[0][-1])

    def label(self, chains: Sequence[Chain], seed: int) -> list[StepLabel]:
        """See `Strategy.label`. Source: Gal & Ghahramani 2016; METHODS 1 has the guide's defects."""
        if self.knots is None:
            reason = "not fitted: all chains end alike"
            return [
                StepLabel(chain.trajectory.id, index, NAME, None, None, 0.0, 0, reason)
                for chain in chains for index in range(len(chain.trajectory.steps))
            ]
        labels = []
        for chain, uncertainties in zip(chains, self.uncertainties(chains, seed), strict=True):
            for index, uncertainty in enumerate(uncertainties):
                value = float(np.interp(uncertainty, *self.knots))
                labels.append(StepLabel(
                    chain.trajectory.id, index, NAME, value, value > 0.5, max(value, 1 - value), 0,
                    f"predictive uncertainty {uncertainty:.2f} nats under dropout",
                ))
        return labels

    def _encodes(self, chain: Chain) -> bool:
        try:
            self.tools.backbone.encoder.encode(chain.problem.prompt, chain.trajectory.steps)
        except InputError:
            return False
        return True

    def uncertainties(self, chains: Sequence[Chain], seed: int) -> list[np.ndarray]:
        """Predictive uncertainty of each step, in nats: one array (steps,) a chain."""
        encoder = self.tools.backbone.encoder
        encoded = [encoder.encode(chain.problem.prompt, chain.trajectory.steps) for chain in chains]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        size = self.settings.batch_size
        result: list[np.ndarray] = [np.empty(0)] * len(encoded)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            values = self._batch_uncertainties([encoded[i] for i in rows], seed + start)
            for row, steps in zip(rows, values, strict=True):
                result[row] = steps
        return result

    def _batch_uncertainties(self, encoded: list[EncodedChain], seed: int) -> list[np.ndarray]:
        import torch

        from prm_core.models.dropout import dropout_on
        from prm_core.models.likelihood import reduce_by_step, step_index, token_logprobs
        from prm_core.models.padding import pad

        model = self.tools.backbone.model
        ids = pad([chain.ids for chain in encoded], self.tools.backbone.encoder.pad_id).to(model.device)
        steps = step_index(encoded, ids.shape[1]).to(model.device)
        count = max(len(chain.step_ends) for chain in encoded)
        passes = []
        with torch.inference_mode(), dropout_on(model, self.settings.dropout, seed):
            for _ in range(self.settings.samples):
                hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
                passes.append(token_logprobs(hidden, model.get_output_embeddings(), ids, steps))
        predictive = torch.logsumexp(torch.stack(passes), 0) - math.log(self.settings.samples)
        lowest = reduce_by_step(predictive, steps, count, "amin").cpu().numpy()
        return [-row[: len(chain.step_ends)] for row, chain in zip(lowest, encoded, strict=True)]


STRATEGIES.register(NAME)(McDropoutLabeler)

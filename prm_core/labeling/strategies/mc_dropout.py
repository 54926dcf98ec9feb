"""MC dropout: how uncertain the backbone is of a step when dropout perturbs it, mapped to P(step right)."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prm_core.errors import InputError
from prm_core.labeling.outcomes import fit_outcomes, tells
from prm_core.labeling.strategies.base import STRATEGIES, Chain, LabelingTools, Strategy
from prm_core.labeling.strategies.uncertainty import MEASURES, StepBatch
from prm_core.models.batching import in_batches
from prm_core.models.encoder import EncodedChain
from prm_core.platform import workers
from prm_core.types import StepLabel

log = logging.getLogger(__name__)
NAME = "mc_dropout"


class McDropoutLabeler(Strategy):
    """Labels steps by their uncertainty over passes with dropout, measured as configured.

    The measure `predictive` is that of the step's least expected token. It covers both what the backbone would not have
    written and what it is unsure of. The mere spread over passes (`likelihood`, `bald`, `representation`) does not: a
    token that is confidently wrong has a probability near 0 in every pass. How much uncertainty still means "right" is
    no constant: a falling logistic map to P(right) is fitted on the outcomes of the policy's own chains, in which a
    wrong step costs the answer but for luck (`labeling/outcomes.py`). No human label and no other strategy's verdict
    enters.

    Raises InputError for an unknown measure.
    """

    version = 4

    def __init__(self, tools: LabelingTools) -> None:
        super().__init__(tools)
        self.settings = tools.config.label.mc_dropout
        self.measure = MEASURES[self.settings.measure]
        self.map: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def model(self) -> str:
        return self.tools.backbone.version

    @property
    def parameters(self) -> dict[str, Any]:
        return dataclasses.asdict(self.settings)

    def prepare(self, chains: Sequence[Chain], seed: int) -> None:
        """Fits the map on a seeded sample of the policy's chains with outcomes.

        When they all end alike there is nothing to tell apart: the strategy warns and abstains from every step.
        """
        known = [chain for chain in chains if chain.own and chain.trajectory.outcome is not None]
        count = min(self.settings.fit_chains, len(known))
        sample = random.Random(f"{NAME}/{seed}").sample(known, count)
        # One that does not encode fails in `label`, where it is counted.
        sample = [chain for chain in sample if self._encodes(chain)]
        outcomes = np.array([float(bool(chain.trajectory.outcome)) for chain in sample])
        if not tells(outcomes):
            log.warning("%s abstains: the %d chains sampled to fit it all end alike; generate more, or leave the "
                        "strategy out of label.strategies", NAME, count)
            return
        parts = workers.shards(len(sample), -(-len(sample) // workers.PARTS))
        with workers.forked(lambda part: self.uncertainties(sample[part], seed + part.start), len(parts)) as pool:
            found = [steps for part in pool.map(parts) for steps in part]
        middle, scale = np.median(np.concatenate(found)), max(float(np.std(np.concatenate(found))), 1e-9)
        scores = np.full((len(found), max(map(len, found)), 1), np.nan)
        for row, steps in enumerate(found):
            scores[row, : len(steps), 0] = (middle - steps) / scale
        fitted = fit_outcomes(scores, ~np.isnan(scores[:, :, 0]), outcomes)
        # A share of 0 or 1 among some hundred chains is not certainty: Laplace's rule bounds it.
        bound = 1.0 / (count + 2)
        self.map = lambda steps: np.clip(fitted.right(((middle - steps) / scale)[:, None]), bound, 1 - bound)
        log.info("%s: a step is as likely wrong as right at an uncertainty (%s) of %.3f; %.0f %% of the chains with a "
                 "wrong step end right", NAME, self.settings.measure,
                 middle + scale * fitted.bias / max(float(fitted.weights[0]), 1e-9), 100 * fitted.lucky)

    def label(self, chains: Sequence[Chain], seed: int) -> list[StepLabel]:
        """See `Strategy.label`. Source: Gal & Ghahramani 2016; METHODS 1 has the guide's defects."""
        if self.map is None:
            reason = "not fitted: all chains end alike"
            return [
                StepLabel(chain.trajectory.id, index, NAME, None, None, 0.0, 0, reason)
                for chain in chains for index in range(len(chain.trajectory.steps))
            ]
        labels = []
        for chain, uncertainties in zip(chains, self.uncertainties(chains, seed), strict=True):
            for index, (uncertainty, value) in enumerate(
                zip(uncertainties, self.map(uncertainties).tolist(), strict=True)
            ):
                labels.append(StepLabel(
                    chain.trajectory.id, index, NAME, value, value > 0.5, max(value, 1 - value), 0,
                    f"{self.measure.words.format(uncertainty)} under dropout",
                ))
        return labels

    def _encodes(self, chain: Chain) -> bool:
        try:
            self.tools.backbone.encoder.encode(chain.problem.prompt, chain.trajectory.steps)
        except InputError:
            return False
        return True

    def uncertainties(self, chains: Sequence[Chain], seed: int) -> list[np.ndarray]:
        """The measure of each step: one array (steps,) a chain. A batch that does not fit in memory is halved."""
        encoder = self.tools.backbone.encoder
        encoded = [encoder.encode(chain.problem.prompt, chain.trajectory.steps) for chain in chains]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        values = in_batches(order, self.settings.batch_size, lambda rows, start: self._batch_uncertainties(
            [encoded[i] for i in rows], seed + start), NAME)
        result: list[np.ndarray] = [np.empty(0)] * len(encoded)
        for row, steps in zip(order, values, strict=True):
            result[row] = steps
        return result

    def _batch_uncertainties(self, encoded: list[EncodedChain], seed: int) -> list[np.ndarray]:
        import torch

        from prm_core.models.dropout import dropout_on

        model = self.tools.backbone.model
        batch = _step_batch(encoded, model, self.tools.backbone.encoder.pad_id)
        with torch.inference_mode(), dropout_on(model, self.settings.dropout, seed):
            # One pass covers all steps of all chains; a measure keeps the little of it that it needs.
            kept = torch.stack([
                self.measure.observe(model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state, batch)
                for _ in range(self.settings.samples)])
            found = self.measure.combine(kept, batch).float().cpu().numpy()
        return [row[: len(chain.step_ends)] for row, chain in zip(found, encoded, strict=True)]


def _step_batch(encoded: Sequence[EncodedChain], model: Any, pad_id: int) -> StepBatch:
    import torch

    from prm_core.models.likelihood import step_index
    from prm_core.models.padding import pad

    ids = pad([chain.ids for chain in encoded], pad_id)
    counts = torch.tensor([len(chain.step_ends) for chain in encoded])
    exists = torch.arange(int(counts.max())) < counts[:, None]
    tensors = (ids, step_index(encoded, ids.shape[1]), pad([chain.step_ends for chain in encoded], 0), exists)
    return StepBatch(*(tensor.to(model.device) for tensor in tensors), head=model.get_output_embeddings())


STRATEGIES.register(NAME)(McDropoutLabeler)

"""Scoring the same beginnings again and again, as a search does: what the backbone computed of a prefix is kept for
chains that go on from it, and the tokens that were computed are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from prm_core.scoring.scorer import ChainScore, LoadedScorer, RewardScorer
from prm_core.types import Step

if TYPE_CHECKING:
    from torch import Tensor

    from prm_core.models.encoder import EncodedChain, Encoder
    from prm_core.models.static.states import StaticStates
    from prm_core.scoring.incremental.reader import IncrementalReader

# Devices on which what is kept lies in buffers of a fixed size, and a pass over a step is one graph.
GRAPHED = ("cuda",)


@dataclass(frozen=True, slots=True)
class Read:
    """A chain's scores, and what they cost.

    Attributes:
        score: of the chain.
        computed: tokens that the model computed for it.
        whole: tokens of the whole chain, which scoring it alone would have computed.
    """

    score: ChainScore
    computed: int
    whole: int


class ScoringSession:
    """A reward model that remembers what it has read. The scores are its own, but for rounding.

    One for which `incremental.reader.reads_on` says no reads every chain whole.

    Args:
        scorer: the model.
        counter: whose tokens are counted where the scorer is another project's and has an encoder of its own kind.
    """

    def __init__(self, scorer: LoadedScorer, counter: Encoder) -> None:
        self.scorer = scorer
        self._counter = counter
        self._reader: IncrementalReader | None = None
        self._states: StaticStates | None = None
        if isinstance(scorer, RewardScorer) and scorer.model.kind != "implicit":
            from prm_core.models.static.decoder import supports
            from prm_core.models.static.states import StaticStates
            from prm_core.scoring.incremental.reader import IncrementalReader, reads_on

            if scorer.model.device.type in GRAPHED and supports(scorer.model.backbone):
                self._states = StaticStates(scorer.model.backbone, scorer.encoder.config.max_length)
            elif reads_on(scorer):
                self._reader = IncrementalReader(scorer)

    @property
    def kind(self) -> str:
        """`process`, `outcome` or `advantage`."""
        return self.scorer.kind

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[Read]:
        """Scores (prompt, steps) pairs, each with a step at least, in order."""
        if not chains:
            return []
        if self._reader is not None:
            return [Read(cast("ChainScore", job.score), job.computed, job.length) for job in self._reader.score(chains)]
        if not isinstance(self.scorer, RewardScorer):
            lengths = [len(self._counter.encode(*chain, may_be_empty=True).ids) for chain in chains]
            scores = self.scorer.score(chains)
            return [Read(score, whole, whole) for score, whole in zip(scores, lengths, strict=True)]
        encoded = [self.scorer.encoder.encode(prompt, steps, may_be_empty=True) for prompt, steps in chains]
        if self._states is None:
            return _whole(self.scorer.score_encoded(encoded), encoded)
        costs: dict[tuple[int, ...], int] = {}
        scores = self.scorer.score_encoded(encoded, lambda texts, columns: self._hidden(texts, columns, costs))
        return [Read(score, costs.pop(tuple(chain.ids), 0), len(chain.ids))
                for score, chain in zip(scores, encoded, strict=True)]

    def _hidden(self, texts: Sequence[Sequence[int]], columns: int, costs: dict[tuple[int, ...], int]) -> Tensor:
        assert self._states is not None
        found = self._states.read(texts)
        for text, (_, computed) in zip(texts, found, strict=True):
            costs[tuple(text)] = costs.get(tuple(text), 0) + computed
        first = found[0][0]
        hidden = first.new_zeros(len(texts), columns, first.shape[1])
        for row, (states, _) in zip(hidden, found, strict=True):
            row[: len(states)] = states
        return hidden


def _whole(scores: Sequence[ChainScore], encoded: Sequence[EncodedChain]) -> list[Read]:
    """Of equal chains one is computed."""
    left = {tuple(chain.ids): len(chain.ids) for chain in encoded}
    return [Read(score, left.pop(tuple(chain.ids), 0), len(chain.ids))
            for score, chain in zip(scores, encoded, strict=True)]


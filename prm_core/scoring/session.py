"""Scoring the same beginnings again and again, as a search does: what the backbone computed of a prefix is kept for
chains that go on from it, and the tokens that were computed are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from prm_core.scoring.scorer import ChainScore, LoadedScorer, RewardScorer
from prm_core.types import Step

if TYPE_CHECKING:
    from prm_core.models.encoder import EncodedChain, Encoder
    from prm_core.scoring.incremental.reader import IncrementalReader


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
        if isinstance(scorer, RewardScorer):
            from prm_core.scoring.incremental.reader import IncrementalReader, reads_on

            if reads_on(scorer):
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
        return _whole(self.scorer.score_encoded(encoded), encoded)


def _whole(scores: Sequence[ChainScore], encoded: Sequence[EncodedChain]) -> list[Read]:
    """Of equal chains one is computed."""
    left = {tuple(chain.ids): len(chain.ids) for chain in encoded}
    return [Read(score, left.pop(tuple(chain.ids), 0), len(chain.ids))
            for score, chain in zip(scores, encoded, strict=True)]


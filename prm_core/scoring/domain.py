"""Whether a reward model can judge a chain: how far it lies from the chains the model was trained on.

A reward model gives any text a score, and a confident one as easily as not. Three measurements say when it means
little: tokens that no training chain held, tokens that stand beside each other in none, and the distance of the chain's
mean hidden state from theirs. Their limits are what training chains themselves keep, each measured against the chains
of other problems.

Source: Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors" (the distance, on unit vectors).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prm_core.errors import InputError
from prm_core.models.encoder import EncodedChain

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from prm_core.models.encoder import Encoder
    from prm_core.scoring.reward import RewardModel
    from prm_core.types import Step

FILE = "domain.safetensors"
# Distance to this nearest chain; share of training chains that each limit takes in; chains kept to measure from.
NEIGHBOUR, WITHIN, KEPT = 5, 0.995, 1000
# How much of a score's log-odds is believed of text that the model cannot judge; beyond EDGE no score is surer.
TRUST, EDGE = 0.5, 1e-3
BATCH = 64
# Of a distance: another batch, device or precision rounds hidden states differently.
ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class News:
    """What of a chain's tokens is new to a model.

    Attributes:
        unknown: the largest share of tokens of a part that occur in no training chain, in [0, 1].
        part: the first part with that share; 0 is the prompt.
        parts: that were looked at.
        new: pairs of neighbours that occur in no training chain.
        tokens: of all parts.
        last: the last token, -1 for none.
    """

    unknown: float
    part: int
    parts: int
    new: int
    tokens: int
    last: int


NOTHING = News(0.0, 0, 0, 0, 0, -1)


@dataclass(frozen=True, slots=True)
class Domain:
    """What a model was trained on, as far as telling other texts needs it.

    Attributes:
        known: whether a token occurs in the training chains, (vocabulary,).
        max_unknown: the largest share of other tokens in a prompt or step, in [0, 1].
        states: mean hidden states of training chains as unit vectors, (chains, width) float32.
        max_distance: the largest distance, 1 - cosine, to the NEIGHBOUR-nearest of them; infinity for no limit.
        numbers: which tokens hold a digit: as neighbours they are all alike, (vocabulary,).
        neighbours: codes of tokens that stand beside each other in the training chains, sorted, (pairs,) int64.
        max_new: the largest share of other neighbours in a chain, in [0, 1].
    """

    known: NDArray[np.bool_]
    max_unknown: float
    states: NDArray[np.float32]
    max_distance: float
    numbers: NDArray[np.bool_]
    neighbours: NDArray[np.int64]
    max_new: float

    def doubts(self, chains: Sequence[EncodedChain], states: NDArray[np.float32]) -> list[str]:
        """Why the model cannot judge each chain, empty where it can.

        Args:
            chains: as encoded for the model.
            states: their mean hidden states, (chains, width).
        """
        return self.doubts_of([self.news(parts(chain))[-1] for chain in chains], states)

    def news(self, added: Sequence[Sequence[int]], before: News = NOTHING) -> list[News]:
        """What is new to the model in a chain up to and with each part (prompt or step) that is added to it.

        Args:
            added: token ids of the parts, each with the separator that ends it.
            before: of the parts before.
        """
        ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in added])
        ends = np.cumsum([len(part) for part in added])
        known = np.concatenate([[0], np.cumsum(self.known[ids])])[[0, *ends]]
        # The first token of a chain has nothing before it.
        linked = ids if before.last < 0 else np.concatenate([[before.last], ids])
        codes = neighbour_codes(linked, self.numbers)
        met = np.concatenate([[0], np.cumsum(~_among(codes, self.neighbours))])[ends - (before.last < 0)]
        found, last = [], before
        for number, (new, end) in enumerate(zip(met.tolist(), ends.tolist(), strict=True)):
            share = 1 - float(known[number + 1] - known[number]) / len(added[number])
            worst, part = max((last.unknown, -last.part), (share, -last.parts))
            last = News(worst, -part, last.parts + 1, before.new + new, before.tokens + end, int(ids[end - 1]))
            found.append(last)
        return found

    def doubts_of(self, news: Sequence[News], states: NDArray[np.float32]) -> list[str]:
        """The same of chains whose tokens were looked at before."""
        distances = _nearest(_units(states) @ self.states.T)
        return [self._doubt(one, float(distance)) for one, distance in zip(news, distances, strict=True)]

    def _doubt(self, news: News, distance: float) -> str:
        if news.unknown > self.max_unknown:
            where = f"steps[{news.part - 1}]" if news.part else "the prompt"
            return (f"{news.unknown:.0%} of the tokens of {where} occur nowhere in the text the model was trained "
                    f"on (usual is up to {self.max_unknown:.0%})")
        pairs = news.tokens - 1
        # As the limit is computed, to the last bit.
        new = 1 - (pairs - news.new) / pairs if pairs > 0 else 0.0
        if new > self.max_new:
            return (f"{new:.0%} of the pairs of neighbouring tokens occur nowhere in the text the model was trained on "
                    f"(usual is up to {self.max_new:.0%})")
        if distance > self.max_distance + ROUNDING:
            return (f"the text is unlike what the model was trained on: its distance {distance:.3f} is above "
                    f"{self.max_distance:.3f}")
        return ""

    def save(self, folder: Path) -> None:
        """Writes the file beside a model's weights."""
        from safetensors.numpy import save_file

        limits = np.array([self.max_unknown, self.max_distance, self.max_new])
        save_file({"known": self.known, "states": self.states, "numbers": self.numbers, "neighbours": self.neighbours,
                   "limits": limits}, folder / FILE)

    @classmethod
    def load(cls, folder: Path, vocabulary: int, width: int) -> Domain | None:
        """What `save` wrote; None for a model saved without, or before neighbours were looked at.

        Raises InputError when the file does not load or is not of a model of this vocabulary and width.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = folder / FILE
        if not path.exists():
            return None
        try:
            tensors = load_file(path)
            if "neighbours" not in tensors:
                return None
            known, states, limits, numbers, neighbours = (
                tensors[name] for name in ("known", "states", "limits", "numbers", "neighbours"))
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"{path}: does not load ({error}); copy the model's folder whole or train it again"
                             ) from error
        if known.shape != (vocabulary,) or known.dtype != bool or states.shape[1:] != (width,) or (
                limits.shape != (3,) or not np.isfinite(states).all() or not (limits >= 0).all()) or (
                numbers.shape != (vocabulary,) or numbers.dtype != bool or neighbours.ndim != 1):
            raise InputError(f"{path}: is not of this model, of {vocabulary} tokens and width {width}; copy the "
                             "model's folder whole or train it again")
        max_unknown, max_distance, max_new = map(float, limits)
        return cls(known, max_unknown, states, max_distance, numbers, neighbours, max_new)


def parts(chain: EncodedChain) -> list[list[int]]:
    """Token ids of the prompt and of each step with its observation, each with the separator that ends it."""
    ends = [chain.prompt_length, *(end + 1 for end in chain.step_ends)]
    return [chain.ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def moderate(scores: ArrayLike) -> NDArray[np.float64]:
    """Calibrated scores of a chain that the model cannot judge, with TRUST of their log-odds: its confidence was earned
    on other text. Their order, and what is more likely right than wrong, stay."""
    p = np.clip(np.asarray(scores, dtype=np.float64), EDGE, 1 - EDGE)
    return 1 / (1 + (1 / p - 1) ** TRUST)


def unmoderated(scores: Sequence[float]) -> list[float]:
    """What `moderate` was given, up to EDGE: what a threshold that was chosen on other text compares with."""
    p = np.asarray(scores, dtype=np.float64)
    return (1 / (1 + (1 / p - 1) ** (1 / TRUST))).tolist()


def neighbour_codes(ids: Sequence[int], numbers: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A number for each two tokens beside each other, (tokens - 1,); tokens with a digit count as one."""
    classes = np.where(numbers[ids], len(numbers), ids).astype(np.int64)
    return classes[:-1] * (len(numbers) + 1) + classes[1:]


def _among(codes: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which codes are among sorted ones."""
    if not len(known):
        return np.zeros(len(codes), dtype=bool)
    return known[np.minimum(np.searchsorted(known, codes), len(known) - 1)] == codes


def unreadable(count: int, tokens: int) -> str | None:
    """Why a model saved without its domain cannot judge a chain: its tokenizer has no token for some of the text. None
    where nothing says that it cannot, which is not to say that it can.

    Args:
        count: tokens that stand for what the tokenizer cannot read.
        tokens: of the chain.
    """
    return f"the model's tokenizer cannot read {count} of {tokens} tokens" if count else None


def fit_domain(model: RewardModel, encoder: Encoder, chains: Sequence[tuple[str, str, Sequence[Step]]]) -> Domain:
    """The domain of a trained model.

    Args:
        model: in eval mode.
        encoder: it was trained with.
        chains: (problem, prompt, steps) of all it knows, those held out of training too; at least one.
    """
    encoded = [encoder.encode(prompt, steps, may_be_empty=True) for _, prompt, steps in chains]
    _, problem = np.unique([problem for problem, _, _ in chains], return_inverse=True)
    # A token that one problem alone holds is new to it; 0 is of no problem yet, -1 of several.
    size = model.network.config.vocab_size
    owner = np.zeros(size, dtype=np.int64)
    for chain, number in zip(encoded, problem, strict=True):
        ids = np.unique(chain.ids)
        owner[ids] = np.where((owner[ids] == 0) | (owner[ids] == number + 1), number + 1, -1)
    if encoder.tokenizer.unk_token_id is not None:
        owner[encoder.tokenizer.unk_token_id] = 0
    unknown = [max(float((owner[ids] != -1).mean()) for ids in parts(chain)) for chain in encoded]
    texts = encoder.tokenizer.batch_decode([[token] for token in range(min(size, len(encoder.tokenizer)))])
    numbers = np.zeros(size, dtype=bool)
    numbers[: len(texts)] = [any(letter.isdigit() for letter in text) for text in texts]
    codes = [neighbour_codes(chain.ids, numbers) for chain in encoded]
    held = np.unique(np.stack([np.concatenate(codes), np.repeat(problem, [len(one) for one in codes])], axis=1), axis=0)
    neighbours, holders = np.unique(held[:, 0], return_counts=True)
    # As with tokens, what one problem alone holds is new to it.
    common = neighbours[holders > 1]
    new = [1 - float(_among(one, common).mean()) if len(one) else 0.0 for one in codes]
    chosen = np.unique(np.linspace(0, len(encoded) - 1, min(KEPT, len(encoded))).astype(int))
    states = _units(mean_states(model, encoder, [encoded[i] for i in chosen]))
    similar = states @ states.T
    similar[problem[chosen][:, None] == problem[chosen]] = -np.inf
    return Domain(owner != 0, _limit(unknown), states, _limit(_nearest(similar)), numbers, neighbours, _limit(new))


def mean_states(model: RewardModel, encoder: Encoder, chains: Sequence[EncodedChain]) -> NDArray[np.float32]:
    """Mean last hidden state of each chain's tokens, (chains, width)."""
    import torch

    from prm_core.models.chains import collate
    from prm_core.platform.progress import track

    # Batches of like length waste least on padding.
    order = sorted(range(len(chains)), key=lambda at: len(chains[at].ids))
    found = []
    for start in track(range(0, len(chains), BATCH), "read what the model knows", unit="batch"):
        batch = collate([chains[at] for at in order[start : start + BATCH]], encoder.pad_id).to(model.device)
        with torch.inference_mode():
            found.append(model.states(batch).cpu().numpy())
    return np.concatenate(found)[np.argsort(order)]


def _limit(values: Iterable[float]) -> float:
    # One of the values: nothing can be interpolated towards infinity.
    return float(np.quantile(list(values), WITHIN, method="higher"))


def _nearest(similar: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distance to the NEIGHBOUR-nearest in each row of cosines, infinity where there are fewer."""
    if similar.shape[1] < NEIGHBOUR:
        return np.full(len(similar), np.inf, dtype=np.float32)
    return 1 - np.partition(similar, -NEIGHBOUR, axis=1)[:, -NEIGHBOUR]


def _units(states: NDArray[np.float32]) -> NDArray[np.float32]:
    return states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)

"""Scoring chains with a saved reward model: the one interface training, search, evaluation and serving use."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.models.encoder import EncodedChain, Encoder
from prm_core.models.loading import first_line, load_config, load_encoder, model_version
from prm_core.models.saving import save_tokenizer
from prm_core.platform import store, sums
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.domain import Domain, moderate, unreadable
from prm_core.scoring.settings import reward_settings
from prm_core.turns import RENDERER
from prm_core.types import Step

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from prm_core.scoring.reward import Reading, RewardModel

CALIBRATOR_FILE = "calibrator.json"
# Token ids of chains, and the columns to pad to → the backbone's last states, (chains, columns, width).
Hidden = Callable[[Sequence[Sequence[int]], int], "Tensor"]


@dataclass(frozen=True, slots=True)
class ChainScore:
    """Scores of one chain.

    Attributes:
        step_scores: calibrated probability that each step is right, moderated where `out_of_domain` says why
            (`domain.moderate`); an outcome model gives one score for the chain, an
            advantage model the prover's value after each step.
        raw_scores: the same before calibration (sigmoid of the head's output).
        truncated_steps: trailing steps that did not fit the context and have no score; all of them, and no score,
            where the prompt leaves no room for the first.
        prompt_score: an advantage model's value of the bare prompt, None of other models.
        out_of_domain: why the model cannot judge the chain, whatever it scores; empty where it can, None where that is
            not known (scoring/domain.py).
        outcome_score: probability that the chain's final answer is right, None of models that do not say, or of a chain
            that does not fit the context.
        members: of each step, the score that each member of the model's committee gives it; empty without a committee.
    """

    step_scores: tuple[float, ...]
    raw_scores: tuple[float, ...]
    truncated_steps: int
    prompt_score: float | None = None
    out_of_domain: str | None = None
    outcome_score: float | None = None
    members: tuple[tuple[float, ...], ...] = ()

    @property
    def reliabilities(self) -> tuple[float, ...]:
        """How far each step's score can be relied upon: 1 where all members of the committee agree, 0 where they are
        split between 0 and 1 (1 - twice their standard deviation); empty without a committee."""
        return tuple(1 - 2 * statistics.pstdev(step) for step in self.members)


class ChainScorer(Protocol):
    """Anything that scores chains of steps."""

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        """Scores (prompt, steps) pairs, in order."""
        ...


class ChainEncoder(Protocol):
    """What callers ask of a scorer's encoder."""

    config: EncoderConfig

    def encode(self, prompt: str, steps: Sequence[Step]) -> EncodedChain:
        """A chain as tokens."""
        ...


class LoadedScorer(ChainScorer, Protocol):
    """A reward model as `load_scorer` returns it.

    Attributes:
        kind: `process` (a score for each step), `outcome` (one for the chain) or `advantage` (values).
        version: digest of its folder.
        encoder: how it reads chains.
    """

    version: str

    @property
    def kind(self) -> str: ...

    @property
    def encoder(self) -> ChainEncoder: ...


class RewardScorer:
    """A reward model with its encoder and calibrator. Scoring is thread-safe: it changes nothing.

    Args:
        model: in eval mode.
        encoder: the one it was trained with.
        calibrator: maps raw scores to probabilities.
        version: names exactly these weights and this calibrator.
        batch_size: chains a forward pass.
        domain: what it was trained on, None where that was not kept.
    """

    def __init__(
        self, model: RewardModel, encoder: Encoder, calibrator: Calibrator, version: str, batch_size: int,
        domain: Domain | None = None,
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.calibrator = calibrator
        self.version = version
        self.batch_size = batch_size
        self.domain = domain

    @property
    def kind(self) -> str:
        """`process`, `outcome` or `advantage`; an implicit model scores every step, as a process model does."""
        return "process" if self.model.kind == "implicit" else self.model.kind

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        """Scores (prompt, steps) pairs, in order, in one causal pass a chain.

        Raises InputError for an empty step.
        """
        return self.score_encoded(
            [self.encoder.encode(prompt, steps, may_be_empty=True) for prompt, steps in chains])

    def score_encoded(self, encoded: Sequence[EncodedChain], hidden: Hidden | None = None) -> list[ChainScore]:
        """Scores chains that the scorer's own encoder encoded, in order.

        Args:
            hidden: what computes the backbone's states, in place of a pass over whole chains.
        """
        return self._read(encoded, (self,), hidden)[0]

    def score_with(
        self, others: Sequence[RewardScorer], chains: Sequence[tuple[str, Sequence[Step]]]
    ) -> list[list[ChainScore]]:
        """What this scorer's `score` gives and then each other's, from one pass of the backbone they share.

        Args:
            others: `shares_pass` says yes to each.
        """
        encoded = [self.encoder.encode(prompt, steps, may_be_empty=True) for prompt, steps in chains]
        return self._read(encoded, (self, *others))

    def shares_pass(self, other: RewardScorer) -> bool:
        """Whether one pass of the backbone over a batch serves both."""
        return (self.encoder.config == other.encoder.config and self.model.prompt_slot == other.model.prompt_slot
                and self.model.shares_backbone(other.model))

    def _read(
        self, encoded: Sequence[EncodedChain], scorers: Sequence[RewardScorer], states: Hidden | None = None
    ) -> list[list[ChainScore]]:
        """What each of some scorers says of the chains; one that is not the first shares this one's pass."""
        import torch

        from prm_core.models.chains import collate

        results = [[ChainScore((), (), chain.truncated_steps) for chain in encoded] for _ in scorers]
        # Of equal chains, which a policy writes often, one is read.
        first: dict[tuple[tuple[int, ...], int], int] = {}
        same = [first.setdefault((tuple(chain.ids), chain.truncated_steps), i) for i, chain in enumerate(encoded)]
        # Batches of like length waste least on padding; a prompt that leaves no room for its first step is not read.
        read = (i for i in first.values() if encoded[i].step_ends or not encoded[i].truncated_steps)
        order = sorted(read, key=lambda i: len(encoded[i].ids))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = [encoded[i] for i in rows]
            inputs = collate(batch, self.encoder.pad_id, prompt_slot=self.model.prompt_slot).to(self.model.device)
            with torch.inference_mode():
                if states is not None:
                    hidden = states([encoded[i].ids for i in rows], inputs.ids.shape[1])
                else:
                    hidden = self.model.hidden(inputs) if len(scorers) > 1 else None
                readings = [scorer.model.judge(inputs, hidden) for scorer in scorers]
            for found, scorer, reading in zip(results, scorers, readings, strict=True):
                for row, said in zip(rows, scorer._scores_of(batch, reading), strict=True):
                    found[row] = said
        return [[found[i] for i in same] for found in results]

    def _scores_of(self, batch: Sequence[EncodedChain], reading: Reading) -> Iterator[ChainScore]:
        """Of each chain of a batch, what its reading comes to."""
        import torch

        raw, outcome, members = (None if logits is None else torch.sigmoid(logits).double().cpu().numpy()
                                 for logits in (reading.logits, reading.outcome, reading.committee))
        if self.domain:
            doubts: list[str | None] = [*self.domain.doubts(batch, reading.states.cpu().numpy())]
        else:
            doubts = [unreadable(chain.ids, self.encoder.tokenizer.unk_token_id) for chain in batch]
        for number, (chain, doubt) in enumerate(zip(batch, doubts, strict=True)):
            yield self._score_of(chain, raw[number], doubt, None if outcome is None else outcome[number],
                                 None if members is None else members[number])

    def _calibrated(self, raw: NDArray[np.float64], doubt: str | None) -> list[float]:
        return self._believed(self.calibrator.apply(raw).tolist(), doubt)

    def _believed(self, scores: list[float], doubt: str | None) -> list[float]:
        # A value says how the policy fares, and of that an unfamiliar text tells as much.
        return moderate(scores) if self.domain and doubt and self.kind != "advantage" else scores

    def _score_of(
        self, chain: EncodedChain, values: NDArray[np.float64], doubt: str | None,
        outcome: NDArray[np.float64] | None, members: NDArray[np.float64] | None,
    ) -> ChainScore:
        first, steps = int(self.model.prompt_slot), len(chain.step_ends)
        kept = values[: first + steps]
        if self.kind == "outcome":
            # The last real step's: never what stands in the padding after it.
            kept = kept[-1:]
        scores = tuple(self._calibrated(kept, doubt))
        ended = outcome is not None and steps and not chain.truncated_steps
        said = () if members is None else tuple(
            tuple(self._calibrated(step, doubt)) for step in members[first : first + steps])
        return ChainScore(scores[first:], tuple(map(float, kept[first:])), chain.truncated_steps,
                          scores[0] if first else None, doubt,
                          self._believed([float(outcome[first + steps - 1])], doubt)[0] if ended else None, said)


def save_reward_model(
    model: RewardModel, encoder: Encoder, calibrator: Calibrator, folder: Path, domain: Domain | None = None
) -> None:
    """A Hugging Face folder (safetensors) with the tokenizer, the calibrator and the domain beside the weights, and the
    digests of all files. A model saved without its base leaves the tokenizer out too."""
    model.save_pretrained(folder)
    if model.base is None:
        save_tokenizer(encoder, folder)
    store.write_json(folder / CALIBRATOR_FILE, calibrator.to_dict())
    if domain:
        domain.save(folder)
    sums.write_sums(folder)


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A reward model's folder with its base in it: the folder itself where it is so, else one that is gone after the
    block. Raises InputError as `load_scorer` does."""
    if "base" not in reward_settings(str(folder)):
        yield folder
        return
    # As it was saved, whatever this machine is fast in.
    dtype = str(load_config(str(folder)).dtype).removeprefix("torch.")
    scorer = load_scorer(folder, device="cpu", dtype=dtype)
    scorer.model.base = None
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / folder.name
        save_reward_model(scorer.model, scorer.encoder, scorer.calibrator, copy, scorer.domain)
        yield copy


def load_scorer(
    folder: str | Path, *, device: str = "auto", batch_size: int = 64, dtype: str = "auto"
) -> RewardScorer:
    """The scorer in a folder `save_reward_model` wrote; models of other projects too: `foreign.load_any_scorer`.

    Args:
        dtype: see `load_reward_model`.

    Raises InputError when the folder is not there, holds pickled weights or is not a reward model, or when it was saved
    without its base and that is not there.
    """
    from prm_core.scoring.kinds import load_reward_model

    path = str(folder)
    model = load_reward_model(path, device=device, dtype=dtype)
    encoder = load_encoder(model.base.at if model.base else path, model.network, _encoding(model.encoder, path),
                           complete=model.base is None)
    values = store.read_json(Path(path) / CALIBRATOR_FILE)
    try:
        calibrator = Calibrator.from_dict(values)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}/{CALIBRATOR_FILE}: not a calibrator ({first_line(error)}); copy the model's folder "
                         "whole, or train the model again with the stage train_prm") from error
    network = model.network.config
    domain = Domain.load(Path(path), network.vocab_size, network.hidden_size)
    return RewardScorer(model, encoder, calibrator, model_version(path), batch_size, domain)


def _encoding(settings: Any, path: str) -> EncoderConfig:
    """How a saved model encodes. Raises InputError where its `config.json` says anything else than that."""
    try:
        # A model saved before there were marks.
        encoding = EncoderConfig(**{"renderer": 1, **settings})
    except TypeError as error:
        raise InputError(f"{path}/config.json: prm.encoder is not how chains are encoded ({error}); copy the model's "
                         "folder whole or train it again") from None
    length = encoding.max_length
    if not (isinstance(encoding.separator, str) and type(length) is int and length >= 16
            and isinstance(encoding.chat_template, bool) and encoding.renderer in (1, RENDERER)):
        raise InputError(f"{path}/config.json: prm.encoder must hold a text `separator`, a whole number `max_length` "
                         "of 16 or more, true or false `chat_template`, and a `renderer` up to "
                         f"{RENDERER}; it holds {settings}")
    return encoding

"""Scoring chains with a saved reward model: the one interface training, search, evaluation and serving use."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
        import numpy as np

        return tuple((1 - 2 * np.std(self.members, axis=1)).tolist()) if self.members else ()


@dataclass(frozen=True, slots=True)
class Slot:
    """What a model says where a step ends, or a prompt.

    Attributes:
        raw: probability that it is right, before calibration.
        score: the same calibrated.
        outcome: probability that the answer is right were the chain to end here; None of a model without.
        members: calibrated probability of each of the committee; empty of a model without.
        doubted: the same in a chain that the model cannot judge; None where it knows no such chains.
    """

    raw: float
    score: float
    outcome: float | None
    members: tuple[float, ...]
    doubted: Slot | None = None


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
        from prm_core.scoring.forest import Forest

        self.model = model
        self.encoder = encoder
        self.calibrator = calibrator
        self.version = version
        self.batch_size = batch_size
        self.domain = domain
        # An implicit model reads by two backbones, and what it needs is more than states.
        self._forest = None if model.kind == "implicit" else Forest(model.backbone, encoder.pad_id)

    @property
    def kind(self) -> str:
        """`process`, `outcome` or `advantage`; an implicit model scores every step, as a process model does."""
        return "process" if self.model.kind == "implicit" else self.model.kind

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        """Scores (prompt, steps) pairs, in order; what many of them begin with is read once.

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
        # A prompt that leaves no room for its first step is not read.
        read = [i for i in first.values() if encoded[i].step_ends or not encoded[i].truncated_steps]
        order = sorted(read, key=lambda i: encoded[i].ids)
        if states is None and self._forest and self._forest.pays([encoded[i].ids for i in order]):
            states = self._forest.hidden
        else:
            # Batches of like length waste least on padding.
            order.sort(key=lambda i: len(encoded[i].ids))
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
        if self.domain:
            doubts: list[str | None] = [*self.domain.doubts(batch, reading.states.cpu().numpy())]
        else:
            unknown = self.encoder.tokenizer.unk_token_id
            doubts = [unreadable(chain.ids.count(unknown), len(chain.ids)) for chain in batch]
        counts = [int(self.model.prompt_slot) + len(chain.step_ends) for chain in batch]
        texts = None
        if self.model.arithmetic:
            first = int(self.model.prompt_slot) * [""]
            texts = [[*first, *(step.text for step in self.encoder.decode(chain.ids)[1])] for chain in batch]
        for chain, doubt, slots in zip(batch, doubts, self.slots(reading, counts, texts), strict=True):
            yield self.chain_score(slots, chain.truncated_steps, doubt)

    def slots(
        self, reading: Reading, counts: Sequence[int], texts: Sequence[Sequence[str]] | None = None
    ) -> list[list[Slot]]:
        """What is said of each row's first slots.

        Args:
            reading: of (batch, slots).
            counts: how many there are of each row, (batch,).
            texts: of the step that ends in each slot, for a model with a calculator.
        """
        import numpy as np
        import torch

        logits, committee = reading.logits, reading.committee
        if self.model.arithmetic and texts is not None:
            told = self.model.arithmetic.of_texts(texts, logits)
            logits, committee = logits + told, None if committee is None else committee + told[..., None]
        raw, outcome, members = (None if found is None else torch.sigmoid(found).double().cpu().numpy()
                                 for found in (logits, reading.outcome, committee))
        inside = np.arange(raw.shape[1]) < np.array(counts)[:, None]
        # Slots of all rows, one after the other: never what stands in the padding.
        plain = raw[inside]
        said = [self.calibrator.apply(plain), None if outcome is None else outcome[inside],
                None if members is None else self.calibrator.apply(members[inside])]
        doubted: Sequence[Slot | None] = [None] * len(plain)
        # A value says how the policy fares, and of that an unfamiliar text tells as much.
        if self.domain and self.kind != "advantage":
            doubted = _slots(plain, *(None if one is None else moderate(one) for one in said))
        found = [slot if other is None else replace(slot, doubted=other)
                 for slot, other in zip(_slots(plain, *said), doubted, strict=True)]
        ends = list(itertools.accumulate(counts, initial=0))
        return [found[start:end] for start, end in itertools.pairwise(ends)]

    def chain_score(self, slots: Sequence[Slot], truncated: int, doubt: str | None) -> ChainScore:
        """What is said of a chain.

        Args:
            slots: of its steps that were read, and before them of the prompt where the model has one for it.
            truncated: trailing steps that were not.
            doubt: why the model cannot judge it.
        """
        first = int(self.model.prompt_slot)
        if doubt:
            slots = [slot.doubted or slot for slot in slots]
        # An outcome model's last real step.
        kept = slots[-1:] if self.kind == "outcome" else slots
        read = slots[first:]
        return ChainScore(
            tuple([slot.score for slot in kept[first:]]), tuple([slot.raw for slot in kept[first:]]), truncated,
            kept[0].score if first else None, doubt, read[-1].outcome if read and not truncated else None,
            tuple([slot.members for slot in read]) if read and read[0].members else ())


def _slots(raw: NDArray[np.float64], score: NDArray[np.float64], outcome: NDArray[np.float64] | None,
           members: NDArray[np.float64] | None) -> list[Slot]:
    """Slots of raw scores (slots,), calibrated ones, outcomes, and a committee's (slots, members)."""
    return [Slot(*values) for values in zip(
        raw.tolist(), score.tolist(), [None] * len(raw) if outcome is None else outcome.tolist(),
        [()] * len(raw) if members is None else map(tuple, members.tolist()), strict=True)]


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
    encoder = load_encoder(model.base.at if model.base else path, model.network, read_encoding(model.encoder, path),
                           complete=model.base is None)
    network = model.network.config
    domain = Domain.load(Path(path), network.vocab_size, network.hidden_size)
    return RewardScorer(model, encoder, read_calibrator(path), model_version(path), batch_size, domain)


def read_calibrator(path: str) -> Calibrator:
    """The calibrator in a reward model's folder. Raises InputError where it is none."""
    values = store.read_json(Path(path) / CALIBRATOR_FILE)
    try:
        return Calibrator.from_dict(values)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}/{CALIBRATOR_FILE}: not a calibrator ({first_line(error)}); copy the model's folder "
                         "whole, or train the model again with the stage train_prm") from error


def read_encoding(settings: Any, path: str) -> EncoderConfig:
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

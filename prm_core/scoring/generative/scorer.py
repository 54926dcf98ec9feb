"""Scores of a verifier that writes checks: the share of its checks that bear a step out.

A causal language model continues the chain before the step, as many times as it has votes, and a tool executes what it
wrote. Where the tool cannot tell, the model reads the step, its check and the tool's reply, and its verdict is the
probability of one token.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.models.encoder import EncodedChain, Encoder
from prm_core.models.loading import check_folder, load_encoder, load_pretrained, model_version, pick_device
from prm_core.models.padding import pad
from prm_core.models.precision import as_saved
from prm_core.models.saving import save_language_model
from prm_core.platform import store, sums
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.domain import unreadable
from prm_core.scoring.generative.checks import Check, execute, verdict_turn
from prm_core.scoring.scorer import CALIBRATOR_FILE, ChainScore, read_calibrator, read_encoding
from prm_core.scoring.settings import reward_settings
from prm_core.types import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENERATIVE = "generative"
# Rows sampled together.
ROWS = 1024


@dataclass(frozen=True, slots=True)
class Writing:
    """How checks are written.

    Attributes:
        votes: checks of a step.
        temperature: they are sampled at.
        max_new_tokens: of a check.
    """

    votes: int
    temperature: float
    max_new_tokens: int


class GenerativeScorer:
    """A verifier with its encoder and calibrator. Scoring is thread-safe.

    The same chain gets the same score whatever is scored beside it, but for rounding: its checks are drawn by its own
    text.

    Args:
        model: a causal LM, in eval mode.
        encoder: the one it was trained with.
        calibrator: maps the verdicts' mean to a probability.
        version: names exactly these weights, settings and this calibrator.
        batch_size: chains a forward pass.
        writing: how it writes checks.

    Raises InputError where the tokenizer has no token for a verdict.
    """

    kind = "process"

    def __init__(
        self, model: PreTrainedModel, encoder: Encoder, calibrator: Calibrator, version: str, batch_size: int,
        writing: Writing,
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.calibrator = calibrator
        self.version = version
        self.batch_size = batch_size
        self.writing = writing
        self._opening, self._verdicts = verdict_tokens(encoder)
        # The sampler switches the model's attention.
        self._lock = threading.Lock()

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        """Scores (prompt, steps) pairs, in order.

        Raises InputError for an empty step.
        """
        encoded = [self.encoder.encode(prompt, steps, may_be_empty=True) for prompt, steps in chains]
        asked: dict[tuple[int, ...], float] = {}
        votes: list[list[list[float | tuple[int, ...]]]] = []
        for chain, checks in zip(encoded, self._checks(chains, encoded), strict=True):
            votes.append([])
            for end, found in zip(chain.step_ends, checks, strict=True):
                said = [self._question(chain.ids[: end + 1], check) if check.says is None else float(check.says)
                        for check in found]
                questions = [one for one in said if isinstance(one, tuple)]
                if any(len(ids) >= self.encoder.config.max_length for ids in questions):
                    break
                asked.update(dict.fromkeys(questions, 0.0))
                votes[-1].append(said)
        asked.update(zip(asked, self._probabilities(list(asked)), strict=True))
        return [self._chain_score(chain, len(steps), [
                    sum(asked[one] if isinstance(one, tuple) else one for one in said) / len(said) for said in found])
                for chain, (_, steps), found in zip(encoded, chains, votes, strict=True)]

    def _chain_score(self, chain: EncodedChain, steps: int, raw: Sequence[float]) -> ChainScore:
        doubt = unreadable(chain.ids.count(self.encoder.tokenizer.unk_token_id), len(chain.ids))
        scores = self.calibrator.apply(raw).tolist() if raw else []
        return ChainScore(tuple(scores), tuple(raw), steps - len(raw), out_of_domain=doubt)

    def checks_of(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[list[list[Check]]]:
        """What it writes of (prompt, steps) pairs: of each, for each step that fits its context, a check a vote."""
        return self._checks(chains, [self.encoder.encode(prompt, steps, may_be_empty=True) for prompt, steps in chains])

    def _checks(
        self, chains: Sequence[tuple[str, Sequence[Step]]], encoded: Sequence[EncodedChain]
    ) -> list[list[list[Check]]]:
        return [[[execute(text, step.text) for text in texts] for step, texts in zip(steps, drawn, strict=False)]
                for (_, steps), drawn in zip(chains, self._write(encoded), strict=True)]

    def _write(self, encoded: Sequence[EncodedChain]) -> list[list[list[str]]]:
        """Of each chain and each of its steps, the texts it would write in that step's place, one for each vote; what
        begins alike is continued once."""
        from prm_core.sampling.sampler import Prefix, sample_continuations

        beginnings = [[0 if not chain.step_ends else chain.prompt_length,
                       *(end + 1 for end in chain.step_ends[:-1])][: len(chain.step_ends)] for chain in encoded]
        places: dict[tuple[int, ...], Prefix] = {}
        for row, (chain, starts) in enumerate(zip(encoded, beginnings, strict=True)):
            for start in starts:
                places.setdefault(tuple(chain.ids[:start]), Prefix(row, start))
        prefixes = [prefix for prefix in places.values() for _ in range(self.writing.votes)]
        streams = [(0, stream + vote) for stream in map(_stream, places) for vote in range(self.writing.votes)]
        with self._lock:
            drawn = sample_continuations(
                self.model, [chain.ids for chain in encoded], prefixes, end_id=self.encoder.eos_id,
                pad_id=self.encoder.pad_id, temperature=self.writing.temperature,
                max_new_tokens=self.writing.max_new_tokens, batch_size=ROWS, seed=streams,
                stop_ids=(self.encoder.separator_id,))
        texts = ["".join(self.encoder.decode_steps(one.ids)[:1]) for one in drawn]
        votes = self.writing.votes
        found = {ids: texts[row * votes : (row + 1) * votes] for row, ids in enumerate(places)}
        return [[found[tuple(chain.ids[:start])] for start in starts]
                for chain, starts in zip(encoded, beginnings, strict=True)]

    def _question(self, read: Sequence[int], check: Check) -> tuple[int, ...]:
        """What a verdict is given on: the chain up to and with the step, the check, and what opens the verdict."""
        return (*read, *(token for token, _ in self.encoder.encode_step(check.turn, 0)), *self._opening)

    def _probabilities(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """Probability of the verdict "right" after each text, of the two that there are."""
        import torch

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = [0.0] * len(texts)
        # Of the output layer's rows, the two of the verdicts.
        head = self.model.get_output_embeddings()
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            ids = pad([texts[i] for i in rows], self.encoder.pad_id).to(self.model.device)
            last = torch.tensor([len(texts[i]) - 1 for i in rows], device=ids.device)
            with torch.inference_mode():
                hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
                logits = head(hidden[torch.arange(len(rows), device=ids.device), last])[:, self._verdicts]
                said = logits.double().softmax(-1)[:, 0].cpu().tolist()
            for row, value in zip(rows, said, strict=True):
                found[row] = value
        return found


def verdict_tokens(encoder: Encoder) -> tuple[tuple[int, ...], list[int]]:
    """What opens a verdict, and the tokens of "right" and "wrong".

    Raises InputError where the tokenizer does not have one token for each.
    """
    right, wrong = ([token for token, _ in encoder.encode_step(verdict_turn(verdict), 0)] for verdict in (True, False))
    if len(right) != len(wrong) or right[:-2] != wrong[:-2] or right[-2] == wrong[-2]:
        raise InputError("the tokenizer has no single token for each of the verdicts + and -; name another model")
    return tuple(right[:-2]), [right[-2], wrong[-2]]


def _stream(ids: Iterable[int]) -> int:
    """The number of the random stream of a beginning, the same wherever it is continued."""
    text = ",".join(map(str, ids)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")


def save_generative(scorer: GenerativeScorer, folder: Path) -> None:
    """A Hugging Face folder of the causal LM (safetensors) with tokenizer and calibrator, and the digests of all files.
    `config.json` says under `prm` what it is."""
    scorer.model.config.prm = {"kind": GENERATIVE, "surprisal": False,
                               "encoder": dataclasses.asdict(scorer.encoder.config),
                               "writing": dataclasses.asdict(scorer.writing)}
    save_language_model(scorer.model, scorer.encoder, folder)
    store.write_json(folder / CALIBRATOR_FILE, scorer.calibrator.to_dict())
    sums.write_sums(folder)


def load_generative(folder: str | Path, *, device: str = "auto", batch_size: int = 64) -> GenerativeScorer:
    """The verifier in a folder that `save_generative` wrote.

    Raises InputError when the folder is not there, holds pickled weights or is no such model.
    """
    from transformers import AutoModelForCausalLM

    path = str(folder)
    check_folder(path)
    settings = reward_settings(path)
    if settings["kind"] != GENERATIVE:
        raise InputError(f"{path}: a reward model of kind {settings['kind']!r}, where one of kind {GENERATIVE!r} is "
                         "needed")
    writing = _writing(settings.get("writing"), path)
    model = load_pretrained(AutoModelForCausalLM, path, dtype=as_saved(path, pick_device(device)), device=device).eval()
    encoder = load_encoder(path, model, read_encoding(settings["encoder"], path), complete=True)
    return GenerativeScorer(model, encoder, read_calibrator(path), model_version(path), batch_size, writing)


def _writing(values: Any, path: str) -> Writing:
    """Raises InputError where a folder does not say how its verifier writes."""
    try:
        writing = Writing(**values)
        right = type(writing.votes) is type(writing.max_new_tokens) is int and (
            min(writing.votes, writing.max_new_tokens) >= 1 and float(writing.temperature) >= 0)
    except (TypeError, ValueError):
        right = False
    if not right:
        raise InputError(f"{path}/config.json: prm.writing must hold votes and max_new_tokens of 1 or more and a "
                         f"temperature of 0 or more; it holds {values}. Copy the model's folder whole, or train it "
                         "again")
    return writing

"""Scoring chains with a saved reward model: the one interface training, search, evaluation and serving use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prm_core import store
from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.models.calibration import Calibrator
from prm_core.models.encoder import EncodedChain, Encoder
from prm_core.models.loading import load_pretrained, load_tokenizer, model_version
from prm_core.types import Step

if TYPE_CHECKING:
    from torch import Tensor

    from prm_core.models.reward import RewardModel

CALIBRATOR_FILE = "calibrator.json"


@dataclass(frozen=True, slots=True)
class ChainScore:
    """Scores of one chain.

    Attributes:
        step_scores: calibrated probability that each step is right; an outcome model gives one score for the chain.
        raw_scores: the same before calibration (sigmoid of the head's output).
        truncated_steps: trailing steps that did not fit the context and have no score.
    """

    step_scores: tuple[float, ...]
    raw_scores: tuple[float, ...]
    truncated_steps: int


class ChainScorer(Protocol):
    """Anything that scores chains of steps."""

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        """Scores (prompt, steps) pairs, in order."""
        ...


def collate(encoded: Sequence[EncodedChain], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of `RewardModel.forward`: ids and step of each token (batch, seq), step ends (batch, steps)."""
    from prm_core.models.likelihood import step_index
    from prm_core.models.padding import pad

    ids = pad([chain.ids for chain in encoded], pad_id)
    return ids, step_index(encoded, ids.shape[1]), pad([chain.step_ends for chain in encoded], -1)


class RewardScorer:
    """A reward model with its encoder and calibrator. Scoring is thread-safe: it changes nothing.

    Args:
        model: in eval mode.
        encoder: the one it was trained with.
        calibrator: maps raw scores to probabilities.
        version: names exactly these weights and this calibrator.
        batch_size: chains a forward pass.
    """

    def __init__(
        self, model: RewardModel, encoder: Encoder, calibrator: Calibrator, version: str, batch_size: int
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.calibrator = calibrator
        self.version = version
        self.batch_size = batch_size

    @property
    def kind(self) -> str:
        """`process` or `outcome`."""
        return self.model.config.kind

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        """Scores (prompt, steps) pairs, in order, in one causal pass a chain.

        Raises InputError for an empty step, a step holding the separator, or a prompt too long for the context.
        """
        return self.score_encoded([self.encoder.encode(prompt, steps) for prompt, steps in chains])

    def score_encoded(self, encoded: Sequence[EncodedChain]) -> list[ChainScore]:
        """Scores chains that the scorer's own encoder encoded, in order."""
        import torch

        results: list[ChainScore] = [ChainScore((), (), 0)] * len(encoded)
        # Batches of like length waste least on padding.
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = [encoded[i] for i in rows]
            inputs = [tensor.to(self.model.device) for tensor in collate(batch, self.encoder.pad_id)]
            with torch.inference_mode():
                raw = torch.sigmoid(self.model(*inputs)).double().cpu().numpy()
            for row, chain, values in zip(rows, batch, raw, strict=True):
                kept = values[: len(chain.step_ends)]
                scores = self.calibrator.apply(kept)
                results[row] = ChainScore(tuple(map(float, scores)), tuple(map(float, kept)), chain.truncated_steps)
        return results


def save_reward_model(model: RewardModel, encoder: Encoder, calibrator: Calibrator, folder: Path) -> None:
    """A Hugging Face folder (safetensors) with the tokenizer and the calibrator beside the weights."""
    model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    store.write_json(folder / CALIBRATOR_FILE, calibrator.to_dict())


def load_scorer(folder: str | Path, *, device: str = "auto", batch_size: int = 64) -> RewardScorer:
    """The scorer in a folder `save_reward_model` wrote.

    Raises InputError when the folder is not there, holds pickled weights or is not a reward model.
    """
    from prm_core.models.reward import RewardModel

    path = str(folder)
    config_file = Path(path) / "config.json"
    config = store.read_json(config_file) if config_file.is_file() else None
    if not isinstance(config, dict) or config.get("model_type") != "prm_reward":
        raise InputError(f"{path}: not a reward model folder (no config.json of type prm_reward); train one with the "
                         "stage train_prm or name its folder")
    model = load_pretrained(RewardModel, path, dtype="auto", device=device)
    encoder = Encoder(load_tokenizer(path), EncoderConfig(**model.config.encoder))
    values = store.read_json(Path(path) / CALIBRATOR_FILE)
    try:
        calibrator = Calibrator.from_dict(values)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}/{CALIBRATOR_FILE}: not a calibrator ({error!r}); train the model again with the "
                         "stage train_prm") from error
    return RewardScorer(model, encoder, calibrator, model_version(path), batch_size)

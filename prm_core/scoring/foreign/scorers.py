"""The scorers of other projects' process reward models: TRL, Qwen2.5-Math-PRM, Math-Shepherd."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from prm_core.errors import InputError
from prm_core.models.loading import load_config, load_tokenizer, model_version
from prm_core.models.padding import pad
from prm_core.registry import Registry
from prm_core.scoring.domain import unreadable
from prm_core.scoring.foreign.encoders import (
    BoundaryHeadEncoder,
    ForeignChain,
    ForeignEncoder,
    TokenClassificationEncoder,
    VocabularyEncoder,
)
from prm_core.scoring.foreign.files import context_length, load_whole, read_tensors
from prm_core.scoring.scorer import ChainScore
from prm_core.types import Step

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig

# Tensors of the Qwen head, Linear, ReLU, Linear; their names also tell the family.
QWEN_HEAD = ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")


class ForeignScorer(ABC):
    """A foreign process reward model with its encoder. Scoring is thread-safe: it changes nothing.

    Args:
        model: in eval mode; `_logits` says what it returns.
        encoder: of its family.
        version: names exactly these weights.
        batch_size: chains a forward pass.
    """

    kind = "process"
    separator: ClassVar[str]
    encoder_type: ClassVar[type[ForeignEncoder]]

    def __init__(self, model: nn.Module, encoder: ForeignEncoder, version: str, batch_size: int) -> None:
        self.model = model
        self.encoder = encoder
        self.version = version
        self.batch_size = batch_size

    @classmethod
    def load(
        cls, path: str, *, device: str = "auto", batch_size: int = 64, separator: str | None = None
    ) -> Self:
        """The scorer of a model folder; the separator is the family's own unless one is named.

        Raises InputError when it is no model of this family.
        """
        tokenizer, config = load_tokenizer(path), load_config(path)
        encoder = cls.encoder_type(tokenizer, separator or cls.separator, context_length(config, tokenizer))
        model = cls._load_model(path, config, encoder, device)
        return cls(model, encoder, model_version(path), batch_size)

    @classmethod
    @abstractmethod
    def _load_model(cls, path: str, config: PretrainedConfig, encoder: Any, device: str) -> nn.Module:
        """The network; `encoder` is an `encoder_type`."""

    def _logits(self, ids: Tensor, mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits (wrong, right) of tokens (rows[i], columns[i]), (tokens, 2); ids and mask are (batch, seq)."""
        return self.model(input_ids=ids, attention_mask=mask).logits[rows, columns]

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        """Scores (prompt, steps) pairs, in order, in one pass a chain; the scores are the model's, not calibrated.

        Raises InputError for an empty step.
        """
        encoded = [self.encoder.encode(prompt, steps) for prompt, steps in chains]
        results = [ChainScore((), (), chain.truncated_steps) for chain in encoded]
        # Batches of like length waste least on padding; a chain without steps, or room for any, has nothing to score.
        order = sorted((i for i, chain in enumerate(encoded) if chain.ids), key=lambda i: len(encoded[i].ids))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for index, scores in zip(batch, self._probabilities([encoded[i] for i in batch]), strict=True):
                ids = encoded[index].ids
                doubt = unreadable(ids.count(self.encoder.tokenizer.unk_token_id), len(ids))
                results[index] = ChainScore(scores, scores, encoded[index].truncated_steps, out_of_domain=doubt)
        return results

    def _probabilities(self, batch: Sequence[ForeignChain]) -> list[tuple[float, ...]]:
        """Probability that each step is right, of each chain."""
        import torch

        device = next(self.model.parameters()).device
        # Masked, so any id does as padding.
        ids = pad([chain.ids for chain in batch], 0).to(device)
        mask = pad([[1] * len(chain.ids) for chain in batch], 0).to(device)
        counts = [len(chain.step_ends) for chain in batch]
        rows = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(counts)).to(device)
        columns = torch.tensor([end for chain in batch for end in chain.step_ends], device=device)
        with torch.inference_mode():
            right = self._logits(ids, mask, rows, columns).double().softmax(-1)[:, 1].cpu()
        return [tuple(part.tolist()) for part in right.split(counts)]


FOREIGN: Registry[type[ForeignScorer]] = Registry("style of foreign reward model")


@FOREIGN.register("trl")
class TokenClassificationScorer(ForeignScorer):
    """Any token-classification network with two labels, read at the last token of the separator (TRL's PRMs)."""

    separator = "\n"
    encoder_type = TokenClassificationEncoder

    @classmethod
    def _load_model(
        cls, path: str, config: PretrainedConfig, encoder: TokenClassificationEncoder, device: str
    ) -> nn.Module:
        from transformers import AutoModelForTokenClassification

        if config.num_labels != 2:
            raise InputError(f"model {path}: {config.num_labels} labels, where a process reward model has two, wrong "
                             "and right; name another model")
        return load_whole(AutoModelForTokenClassification, path, device)


@FOREIGN.register("qwen_prm")
class BoundaryHeadScorer(ForeignScorer):
    """A backbone and a head of two layers, read at a boundary token (Qwen2.5-Math-PRM).

    The published folders bring their network as code; here the library's own backbone of the same type is used.
    """

    separator = "<extra_0>"
    encoder_type = BoundaryHeadEncoder

    @classmethod
    def _load_model(cls, path: str, config: PretrainedConfig, encoder: BoundaryHeadEncoder, device: str) -> nn.Module:
        import torch
        from transformers import MODEL_MAPPING

        tensors = read_tensors(path, QWEN_HEAD)
        shapes = [tuple(tensors[name].shape) for name in QWEN_HEAD]
        width = config.hidden_size
        if shapes != [(width, width), (width,), (2, width), (2,)]:
            raise InputError(f"model {path}: its head score.* has shapes {shapes}, where {width} → {width} → 2 labels "
                             "are needed; name another model")
        native = MODEL_MAPPING.get(type(config), None)
        if native is None:
            raise InputError(f"model {path}: the transformers library has no backbone of type {config.model_type!r}; "
                             "name another model")
        # The head is no part of it, and no reason for the library's warning about tensors it has no place for.
        quiet = type(native.__name__, (native,), {"_keys_to_ignore_on_load_unexpected": [r"^score\."]})
        backbone = load_whole(quiet, path, device)
        head = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
        head.load_state_dict({name.removeprefix("score."): tensor for name, tensor in tensors.items()})
        head.to(backbone.device, backbone.dtype)
        return torch.nn.ModuleDict({"backbone": backbone, "head": head}).eval()

    def _logits(self, ids: Tensor, mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        hidden = self.model["backbone"](input_ids=ids, attention_mask=mask).last_hidden_state
        return self.model["head"](hidden[rows, columns])


@FOREIGN.register("math_shepherd")
class VocabularyScorer(ForeignScorer):
    """A causal language model: the probability of '+' against '-' after the step tag (Math-Shepherd)."""

    separator = "ки"
    encoder_type = VocabularyEncoder

    @classmethod
    def _load_model(cls, path: str, config: PretrainedConfig, encoder: VocabularyEncoder, device: str) -> nn.Module:
        import torch
        from transformers import AutoModelForCausalLM

        signs = encoder.candidates()
        model = load_whole(AutoModelForCausalLM, path, device)
        full = model.get_output_embeddings()
        # A vocabulary of two: no other logit is ever computed, and what the network does to logits (scale, cap) stays.
        head = torch.nn.Linear(full.in_features, 2, full.bias is not None, device=model.device, dtype=model.dtype)
        head.load_state_dict({name: values[signs] for name, values in full.state_dict().items()})
        model.set_output_embeddings(head)
        return model

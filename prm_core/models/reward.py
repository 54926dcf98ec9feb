"""Reward models: a backbone without its vocabulary head, and a scalar head read where a step ends.

`process` scores every step of a chain in one causal pass; `outcome` scores the chain at its last step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from prm_core.models.likelihood import reduce_by_step, token_logprobs
from prm_core.models.loading import load_pretrained


class RewardModelConfig(PreTrainedConfig):
    """Configuration of a `RewardModel`.

    Args:
        backbone: configuration of the backbone, as a dict.
        kind: `process` or `outcome`.
        surprisal: the head also sees the lowest log-probability of the tokens it judges, under the backbone's own
            vocabulary head.
        encoder: the `EncoderConfig` the model was trained with, as a dict; whoever scores encodes the same way.
    """

    model_type = "prm_reward"

    def __init__(
        self, backbone: dict[str, Any] | None = None, kind: str = "process", surprisal: bool = False,
        encoder: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:
        self.backbone = backbone or {}
        self.kind = kind
        self.surprisal = surprisal
        self.encoder = encoder or {}
        super().__init__(**kwargs)


class RewardModel(PreTrainedModel):
    """Scores steps (`process`) or chains (`outcome`). Only the surprisal needs the vocabulary head; logits are computed
    at written tokens alone."""

    config_class = RewardModelConfig
    base_model_prefix = "backbone"

    def __init__(self, config: RewardModelConfig) -> None:
        super().__init__(config)
        values = dict(config.backbone)
        backbone_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.backbone = AutoModel.from_config(backbone_config)
        width = backbone_config.hidden_size
        self.vocabulary = nn.Linear(width, backbone_config.vocab_size, bias=False) if config.surprisal else None
        self.head = nn.Linear(width + config.surprisal, 1)
        self.post_init()

    @classmethod
    def from_backbone(
        cls, path: str, *, kind: str, surprisal: bool, encoder: dict[str, Any], dtype: str, device: str, seed: int
    ) -> RewardModel:
        """A new reward model on the weights of a causal LM (folder or hub id); only the head is random."""
        auto = AutoModelForCausalLM if surprisal else AutoModel
        source = load_pretrained(auto, path, dtype=dtype, device="cpu")
        torch.manual_seed(seed)
        values = source.config.to_dict()
        # A path on this machine: the same model must be the same folder wherever it is trained.
        values.pop("_name_or_path", None)
        model = cls(RewardModelConfig(values, kind, surprisal, encoder)).to(source.dtype)
        model.backbone.load_state_dict(source.base_model.state_dict())
        if model.vocabulary is not None:
            model.vocabulary.load_state_dict(source.get_output_embeddings().state_dict())
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
        return model.to(device)

    def forward(self, ids: Tensor, steps: Tensor, ends: Tensor) -> Tensor:
        """Logits that each step (or the chain) is right.

        Args:
            ids: right-padded token ids, (batch, seq). Pads stand after all real tokens, where causal attention never
                looks back at them, so no mask is needed.
            steps: index of the step each token was written in, -1 elsewhere, (batch, seq).
            ends: position of each step's last token, -1 where there is no step, (batch, steps).

        Returns:
            (batch, steps) for `process`, (batch, 1) for `outcome`; undefined where `ends` is -1.
        """
        hidden = self.backbone(input_ids=ids, use_cache=False).last_hidden_state
        count = ends.shape[1]
        if self.config.kind == "outcome":
            # The last real step's end: never position -1, which is padding in a right-padded batch.
            ends = ends.amax(1, keepdim=True)
            steps = torch.where(steps >= 0, 0, -1)
            count = 1
        index = ends.clamp(min=0)[:, :, None].expand(-1, -1, hidden.shape[-1])
        features = hidden.gather(1, index)
        if self.vocabulary is not None:
            logprobs = token_logprobs(hidden, self.vocabulary, ids, steps)
            lowest = reduce_by_step(logprobs, steps, count, "amin")
            features = torch.cat([features, lowest[:, :, None].to(features.dtype)], dim=-1)
        return self.head(features).squeeze(-1).float()


AutoConfig.register(RewardModelConfig.model_type, RewardModelConfig)
AutoModel.register(RewardModelConfig, RewardModel)

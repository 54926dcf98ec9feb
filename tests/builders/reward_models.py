"""A reward model of a few thousand random weights, saved as the train_prm stage saves one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

MAX_LENGTH = 64
TEXTS = ["Ann has 3 apples and buys 4 more . How many apples does she have ?", "3 + 4 = 7 .", "The answer is 7 ."]


def tiny_reward_model(folder: Path, *, kind: str = "process", seed: int = 0) -> Path:
    """Writes a randomly initialised reward model with a Llama backbone and surprisal; returns its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForTokenClassification

    from prm_core.config import EncoderConfig
    from prm_core.models.encoder import Encoder
    from prm_core.models.tokenizer import train_tokenizer
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.scorer import save_reward_model
    from prm_core.scoring.surprisal import Surprisal
    from tests.builders.training import KINDS

    encoding = EncoderConfig(max_length=MAX_LENGTH)
    encoder = Encoder(train_tokenizer(TEXTS), encoding)
    torch.manual_seed(seed)
    network = LlamaForTokenClassification(LlamaConfig(
        vocab_size=len(encoder.tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=MAX_LENGTH, num_labels=2,
    ))
    surprisal = Surprisal(16, len(encoder.tokenizer))
    torch.nn.init.normal_(surprisal.vocabulary)
    torch.nn.init.constant_(surprisal.weight, 0.05)
    model = KINDS[kind](network, dataclasses.asdict(encoding), surprisal).eval()
    # Scores spread over (0, 1) instead of lying at one half.
    torch.nn.init.normal_(model.head.weight)
    save_reward_model(model, encoder, Calibrator("identity", 0), folder)
    return folder

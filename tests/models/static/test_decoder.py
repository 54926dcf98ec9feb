"""Passes over fixed buffers: those of the model, whatever lies in the buffers and however tokens are cut up."""

from __future__ import annotations

import pytest
import torch
import transformers

from prm_core.models.static.decoder import StaticDecoder, supports

SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3}
TOLERANCE = 1e-4


def backbone(kind: str = "Qwen2", **changes: object) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **changes})
    return transformers.AutoModel.from_config(config).eval()


def whole(model: transformers.PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids[None], use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize(("kind", "changes"), [
    ("Qwen2", {}), ("Llama", {}), ("Llama", {"head_dim": 16, "num_key_value_heads": 1}),
    ("Llama", {"attention_bias": True}),
    ("Llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                                   "high_freq_factor": 4.0, "original_max_position_embeddings": 64}})])
def test_rows_of_other_lengths_go_on_as_alone(kind: str, changes: dict) -> None:
    model = backbone(kind, **changes)
    assert supports(model)
    decoder = StaticDecoder(model, 3, 70)
    begun, more = torch.randint(50, (2, 40)), torch.randint(50, (2, 6))
    slots, seen = torch.tensor([2, 0]), torch.tensor([30, 25])
    with torch.inference_mode():
        # The second row's last five tokens are padding, written over by what comes.
        decoder.forward(begun[:, :30], slots, torch.tensor([0, 0]))
        found = decoder.forward(more, slots, seen)
    for row, length in enumerate(seen.tolist()):
        expected = whole(model, torch.cat([begun[row, :length], more[row]]))[length:]
        torch.testing.assert_close(found[row], expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_padding_beyond_the_last_column_harms_nothing() -> None:
    model = backbone()
    decoder = StaticDecoder(model, 1, 63)
    ids, zero = torch.randint(50, (63,)), torch.tensor([0])
    with torch.inference_mode():
        decoder.forward(ids[None, :60], zero, zero)
        found = decoder.forward(torch.nn.functional.pad(ids[60:], (0, 5))[None], zero, zero + 60)[0, :3]
    torch.testing.assert_close(found, whole(model, ids)[60:], atol=TOLERANCE, rtol=TOLERANCE)


def test_new_weights_are_taken_over() -> None:
    model = backbone()
    decoder = StaticDecoder(model, 1, 20)
    ids, zero = torch.randint(50, (8,)), torch.tensor([0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    decoder.refresh()
    with torch.inference_mode():
        torch.testing.assert_close(decoder.forward(ids[None], zero, zero)[0], whole(model, ids), atol=TOLERANCE,
                                   rtol=TOLERANCE)


@pytest.mark.parametrize(("kind", "changes"), [
    ("Qwen3", {}), ("Gemma2", {"sliding_window": 5}), ("Mistral", {"sliding_window": 5}), ("GPT2", {"n_embd": 32}),
    ("Llama", {"hidden_act": "gelu"})])
def test_what_is_not_built_like_llama_is_not_supported(kind: str, changes: dict) -> None:
    assert not supports(backbone(kind, **changes))

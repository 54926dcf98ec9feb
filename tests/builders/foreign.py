"""Folders of tiny random process reward models as other projects publish them: TRL, Qwen2.5-Math-PRM, Math-Shepherd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONTEXT = 256
WORDS = "Ann has 3 apples and buys 4 more . How many ? + - = 7 ки user system"
# Of the chat's system message, so that it is short in tokens.
CHAT_WORDS = f"{WORDS} Please reason step by , put your final answer within boxed"
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def tokenizer_of(separator: str, *, chat: bool = False, bos: bool = False) -> Any:
    """A tokenizer of `WORDS`, each one token after a space.

    `chat` gives it the tokens and template of ChatML; with `bos` it puts a bos token before a text, as Mistral's does.
    """
    from tokenizers.processors import TemplateProcessing

    from prm_core.models.tokenizer import BOS, train_tokenizer

    tokenizer = train_tokenizer([CHAT_WORDS if chat else WORDS], [separator])
    tokenizer.model_max_length = CONTEXT
    if chat:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = CHATML
    if bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)])
    return tokenizer


def dimensions(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Sizes of a network, with weights large enough that no two scores are alike."""
    return {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": CONTEXT,
        "initializer_range": 0.5, **more,
    }


def trl_model(folder: Path, *, labels: int = 2) -> Any:
    """Writes a Llama token-classification network as TRL saves one; returns it."""
    import torch
    from transformers import LlamaConfig, LlamaForTokenClassification

    tokenizer = tokenizer_of("\n")
    torch.manual_seed(0)
    model = LlamaForTokenClassification(LlamaConfig(**dimensions(tokenizer, num_labels=labels))).eval()
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def qwen_model(folder: Path, *, shards: bool = False, labels: int = 2) -> tuple[Any, Any]:
    """Writes a Qwen2 backbone and a head of two layers under the tensor names of Qwen2.5-Math-PRM; returns both.

    The folder brings network code, as the published ones do; importing it fails.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2Model

    tokenizer = tokenizer_of("<extra_0>", chat=True)
    config = Qwen2Config(**dimensions(tokenizer))
    torch.manual_seed(0)
    backbone = Qwen2Model(config).eval()
    head = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, labels))
    tensors = {f"model.{name}": tensor for name, tensor in backbone.state_dict().items()}
    tensors |= {f"score.{name}": tensor for name, tensor in head.state_dict().items()}
    tokenizer.save_pretrained(folder)
    code = "modeling_qwen2_rm.Qwen2ForProcessRewardModel"
    (folder / "config.json").write_text(json.dumps({
        **config.to_dict(), "architectures": ["Qwen2ForProcessRewardModel"],
        "auto_map": {"AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig", "AutoModel": code},
    }))
    for name in ("modeling_qwen2_rm.py", "configuration_qwen2_rm.py"):
        (folder / name).write_text("raise SystemExit('code of the folder ran')\n")
    if not shards:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return backbone, head
    names, files = sorted(tensors), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    # score.0.* and score.2.* in different files.
    parts = names[: names.index("score.2.bias")], names[names.index("score.2.bias") :]
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {}, "weight_map": {name: file for file, part in zip(files, parts, strict=True) for name in part}}))
    return backbone, head


def shepherd_model(folder: Path, *, model_type: str = "mistral", **more: Any) -> Any:
    """Writes a language model whose tokenizer has the step tag; returns it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tokenizer_of("<unused>", bos=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **dimensions(tokenizer, **more))).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model

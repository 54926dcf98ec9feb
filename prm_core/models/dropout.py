"""Dropout switched on for a while in a model that ships without it, and switched off again whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# Names of the layers whose outputs enter the residual stream, over the architectures of the transformers library.
RESIDUAL = ("o_proj", "out_proj", "down_proj", "c_proj", "fc2", "dense_4h_to_h")


@contextmanager
def dropout_on(model: PreTrainedModel, rate: float, seed: int) -> Iterator[None]:
    """Residual dropout: drops what attention and feed-forward blocks add, with probability `rate`, seeded.

    Most modern language models have dropout 0, so `model.train()` alone changes nothing. The model's own mode, hooks
    and the global random state are as before when the block ends, also by an error.

    Raises InputError when the backbone has no linear layer to drop the output of.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return functional.dropout(output, rate, training=True)

    linear = {name: module for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear)}
    # Unknown architectures get dropout after every linear layer instead.
    targets = [module for name, module in linear.items() if name.endswith(RESIDUAL)] or list(linear.values())
    if not targets:
        raise InputError(f"{type(model).__name__} has no linear layer; leave mc_dropout out of label.strategies")
    handles = [module.register_forward_hook(drop) for module in targets]
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield
    finally:
        for handle in handles:
            handle.remove()


def drops(model: nn.Module) -> bool:
    """Whether a model drops anything at random while it trains."""
    from torch import nn

    def rate(module: nn.Module) -> float:
        # Attention takes its own as a number.
        named = (getattr(module, name, 0.0) for name in ("attention_dropout", "dropout", "activation_dropout"))
        return max(getattr(module, "p", 0.0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0.0,
                   *(value for value in named if isinstance(value, float)), 0.0)

    return any(rate(module) > 0 for module in model.modules())

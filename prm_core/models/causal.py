"""What a backbone's attention must do and may take: no token sees what comes after it, and a mask of a tree is
followed, or is not."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prm_core.errors import InputError


def as_mask(mask: Tensor | None, backbone: PreTrainedModel) -> Tensor | None:
    """The mask in the form the backbone's attention takes: bool for SDPA, added to the scores otherwise."""
    if mask is None or backbone.config._attn_implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=backbone.dtype, device=mask.device).masked_fill_(
        ~mask, torch.finfo(backbone.dtype).min)


@torch.inference_mode()
def check_causal(backbone: PreTrainedModel, name: str) -> None:
    """Raises InputError when a token's hidden state depends on the tokens after it."""
    ids = torch.arange(8, device=backbone.device)[None] % backbone.config.vocab_size
    other = ids.clone()
    other[0, -1] = 0
    one, two = (backbone(input_ids=x, use_cache=False).last_hidden_state[0, :-1].float() for x in (ids, other))
    if not torch.allclose(one, two, rtol=1e-2, atol=1e-2):
        raise InputError(f"model {name}: it reads ahead (an encoder), so a step's score would depend on later steps; "
                         "name a causal model")


@torch.inference_mode()
def takes_trees(backbone: PreTrainedModel) -> bool:
    """Whether the backbone's attention follows a tree mask: two branches after a stem score as the two chains do.

    Sliding windows, position biases computed from columns, recurrent layers and flash attention without masks say no.
    """
    # Longer than a small sliding window would be caught by its config, not here.
    if getattr(backbone.config, "sliding_window", None) or not getattr(backbone, "_supports_sdpa", False):
        return False
    size = min(backbone.config.vocab_size, 1000)
    stem, left, right = (torch.randint(size, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 3, 4))
    ids = torch.cat([stem, left, right])[None].to(backbone.device)
    node = torch.tensor([0] * 5 + [1] * 3 + [2] * 4)
    mask = ((node[:, None] == node) | (node == 0)).tril()[None, None].to(backbone.device)
    positions = torch.tensor([[*range(8), *range(5, 9)]], device=backbone.device)
    try:
        both = backbone(input_ids=ids, attention_mask=as_mask(mask, backbone), position_ids=positions,
                        use_cache=False).last_hidden_state[0].float()
        alone = [backbone(input_ids=torch.cat([stem, branch])[None].to(backbone.device),
                          use_cache=False).last_hidden_state[0, -1].float() for branch in (left, right)]
    except (TypeError, ValueError, RuntimeError):
        return False
    # Reduced precision rounds either way.
    slack = 1e-3 if backbone.dtype == torch.float32 else 0.1
    scale = max(one.abs().max().item() for one in alone)
    return all((both[at] - one).abs().max().item() <= slack * scale for at, one in zip((7, 11), alone, strict=True))

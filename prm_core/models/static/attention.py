"""Attention of a few new tokens to keys and values in fixed buffers, each row to its own length."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from prm_core.models.static.graph import fused

# Softmax in powers of two, which processors compute faster.
LOG2_E = math.log2(math.e)
# Stands for minus infinity: finite, so that differences are no NaN.
HIDDEN = -1e30
# Keys a program of the kernel multiplies at once, and queries at most.
KEYS, QUERIES = 64, 64
# Devices that have the kernel.
FUSED = ("cuda",)
# Programs that fill a GPU; where rows and heads are fewer, keys are split between several.
PROGRAMS = 264


def attend(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Softmax attention of each token to the columns up to its own: (rows, tokens, heads, width).

    Args:
        query: (rows, tokens, heads, width).
        keys, values: buffers that hold the new tokens' own already, (slots, key-value heads, columns, width).
        slots: the buffers' row that each row reads, (rows,).
        seen: columns before each row's first token, (rows,).
        scale: of the products.
    """
    width = query.shape[3]
    if query.device.type in FUSED and width >= 16 and width & (width - 1) == 0:
        return attend_fused(query, keys, values, slots, seen, scale)
    return attend_plain(query, keys, values, slots, seen, scale)


def attend_plain(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, seen: Tensor, scale: float) -> Tensor:
    """`attend` by the library's attention: copies the rows that are read."""
    rows, tokens, heads, width = query.shape
    own = keys.shape[1]
    limit = seen[:, None] + torch.arange(tokens, device=seen.device)
    sees = torch.arange(keys.shape[2], device=seen.device) <= limit[:, :, None]
    # Query heads that read the same keys stand side by side, as further tokens.
    grouped = query.view(rows, tokens, own, heads // own, width).transpose(1, 2).reshape(rows, own, -1, width)
    mixed = functional.scaled_dot_product_attention(
        grouped, keys[slots], values[slots], sees.repeat_interleave(heads // own, 1)[:, None], scale=scale)
    return mixed.view(rows, own, tokens, heads // own, width).transpose(1, 2).reshape(query.shape)


def attend_fused(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, seen: Tensor, scale: float) -> Tensor:
    """`attend` by one kernel, which copies nothing and reads no column beyond a row's last; where there are few rows
    several programs share one's columns, and what each found is put together.

    Source: Dao et al. 2023, "Flash-Decoding for long-context inference".
    """
    import triton

    from prm_core.models.static.kernel import attention

    rows, tokens, heads, width = query.shape
    own, columns = keys.shape[1], keys.shape[2]
    group = heads // own
    tile = min(max(16, triton.next_power_of_2(tokens * group)), QUERIES)
    tiles = triton.cdiv(tokens * group, tile)
    blocks = triton.cdiv(columns, KEYS)
    parts = max(1, min(PROGRAMS // (rows * own * tiles), blocks))
    chunk = triton.cdiv(blocks, parts) * KEYS
    parts = triton.cdiv(columns, chunk)
    query = query.contiguous()
    whole = parts == 1
    out = torch.empty(query.shape if whole else (parts, *query.shape), device=query.device,
                      dtype=query.dtype if whole else torch.float32)
    sides = torch.empty((2, parts, rows, tokens, heads), device=query.device, dtype=torch.float32)
    attention[(rows * own, tiles, parts)](
        query, keys, values, slots, seen, out, sides[0], sides[1], scale * LOG2_E, tokens, chunk,
        keys.stride(0), keys.stride(1), rows * tokens * heads, OWN=own, GROUP=group, WIDTH=width, TILE=tile,
        BLOCK=KEYS, WHOLE=whole, num_warps=4, num_stages=2,
    )
    return out if whole else _joined(out, sides[0], sides[1]).to(query.dtype)


@fused
def _joined(mixed: Tensor, top: Tensor, total: Tensor) -> Tensor:
    """What parts of the columns came to, as one: (rows, tokens, heads, width)."""
    share = torch.exp2(top - top.amax(0))
    return (mixed * share[..., None]).sum(0) / (total * share).sum(0)[..., None]

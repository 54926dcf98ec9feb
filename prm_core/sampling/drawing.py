"""Random numbers that depend on a seed, a stream and a place alone, and tokens drawn with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from prm_core.sampling.distinct import Taken

# Of samples: one for all, each of which has its place for a stream; or for each its own seed and stream, so that what
# it draws does not depend on what is sampled beside it.
Seed: TypeAlias = int | Sequence[tuple[int, int]]

# The odd constant of SplitMix64 as int64.
STREAM = 0x9E3779B97F4A7C15 - (1 << 64)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64 (any shape). Source: Steele, Lea & Flood 2014."""
    # Shifts of int64 copy the sign, which the masks take away again; products wrap.
    x = (x ^ ((x >> 30) & (1 << 34) - 1)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ ((x >> 27) & (1 << 37) - 1)) * (0x94D049BB133111EB - (1 << 64))
    return x ^ ((x >> 31) & (1 << 33) - 1)


def streams_of(seed: Seed, count: int) -> list[tuple[int, int]]:
    """Seed and stream of each of so many samples."""
    return [(seed, place) for place in range(count)] if isinstance(seed, int) else list(seed)


def stream_starts(seeds: Sequence[int], streams: Tensor) -> Tensor:
    """Where in the sequence of all numbers each stream (int64, 1-d) of its seed begins."""
    low = [seed & (1 << 64) - 1 for seed in seeds]
    starts = torch.tensor([one - (1 << 64) if one >> 63 else one for one in low], device=streams.device)
    return _mix(starts) + streams * STREAM


def uniforms(starts: Tensor, counts: Tensor) -> Tensor:
    """The number in [0, 1) at place `counts` (int64) of streams that begin at `starts`, any one shape; the same on
    every device.

    A prefix's samples come from its own stream, so they do not depend on what is decoded beside it.
    """
    bits = _mix(_mix(starts) + counts * STREAM)
    # 23 bits: the largest number times a float32 is still below that float32.
    return ((bits >> 41) & (1 << 23) - 1).float() / (1 << 23)


def next_draw(drawn: int, limit: int) -> int:
    """How many more to draw where it may be enough at any time: one at first, then half of what there is, up to a limit
    of all together."""
    return min(max(1, drawn // 2), limit - drawn)


def draw(
    logits: Tensor, temperature: float, uniform: Tensor, taken: Taken | None = None
) -> tuple[Tensor, Tensor]:
    """One token for each row of logits (rows, vocabulary) and its log-probability; temperature 0 takes the likeliest.

    What was `taken` is not drawn again, but at temperature 0; log-probabilities are of all there is.

    Sampling inverts the cumulative distribution at one number in [0, 1) a row (rows,), so it costs one pass over the
    vocabulary and no noise tensor.
    """
    if temperature == 0:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        return logits.argmax(-1), logprobs.amax(-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    cumulative = (probabilities if taken is None else taken.left_of(probabilities)).cumsum(-1)
    # Scaled by the last entry, which rounding leaves a little off 1.
    tokens = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return tokens.squeeze(1), probabilities.gather(1, tokens).squeeze(1).log()

"""Whether what a backend wrote was written by the weights it is said to have, at the temperature it was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prm_core.sampling.sampler import Continuation

# Of a token that greedy decoding took: how far below the likeliest one it may be. Rounding to bfloat16 stays below.
GREEDY_SLACK = 0.5
# Standard deviations of the surprise of samples. Beyond them chance has no part in it.
SURPRISE = 6.0
# Mean difference of log-probabilities; of bfloat16 against float32 it is some hundredths.
LOGPROB_SLACK = 0.1


@dataclass(frozen=True, slots=True)
class Match:
    """How continuations compare with a model.

    Attributes:
        fault: why they are not that model's; empty where they are.
        logprobs: what the backend's log-probabilities are of: the sampling distribution ("sampling"), the model
            without the temperature ("model"), "" where it gives none or they are of neither.
    """

    fault: str
    logprobs: str


@torch.inference_mode()
def compare(
    model: PreTrainedModel, prefixes: Sequence[Sequence[int]], found: Sequence[Continuation], temperature: float
) -> Match:
    """Reads each continuation after its prefix with the model.

    At temperature 0 every token must be the likeliest or nearly so. Else the tokens' surprise -log p is compared with
    its expectation, the entropy of each place: of samples of the distribution their difference, over its standard
    deviation, is about standard normal, and far from it with other weights, another temperature, or a cut such as
    top-p.
    """
    surprise = variance = gap = 0.0
    at_temperature, at_one, count = 0.0, 0.0, 0
    known = all(len(one.logprobs) == len(one.ids) for one in found)
    for prefix, one in zip(prefixes, found, strict=True):
        if not one.ids:
            continue
        ids = torch.tensor([[*prefix, *one.ids]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prefix) - 1 : -1].double()
        plain = torch.log_softmax(logits, -1)
        scaled = torch.log_softmax(logits / temperature, -1) if temperature else plain
        tokens = ids[0, len(prefix) :, None]
        own = scaled.gather(1, tokens)[:, 0]
        gap = max(gap, float((scaled.amax(-1) - own).max()))
        weights = scaled.exp()
        entropy = -(weights * scaled).sum(-1)
        surprise += float((-own - entropy).sum())
        variance += float(((weights * scaled**2).sum(-1) - entropy**2).clamp(min=0).sum())
        if known:
            given = torch.tensor(one.logprobs, dtype=torch.float64, device=model.device)
            at_temperature += float((given - own).abs().sum())
            at_one += float((given - plain.gather(1, tokens)[:, 0]).abs().sum())
            count += len(one.ids)
    fault = _greedy_fault(gap) if temperature == 0 else _sampling_fault(surprise, variance)
    if not known or not count:
        return Match(fault, "")
    return Match(fault, "sampling" if at_temperature <= LOGPROB_SLACK * count
                 else "model" if at_one <= LOGPROB_SLACK * count else "")


def _greedy_fault(gap: float) -> str:
    return "" if gap <= GREEDY_SLACK else (
        f"asked for the likeliest tokens, it wrote one whose log-probability under the weights here is {gap:.2f} below "
        "the likeliest one's")


def _sampling_fault(surprise: float, variance: float) -> str:
    # A place where one token is all but certain has no variance; a token that is not that one is far off all the same.
    score = surprise / math.sqrt(max(variance, 1e-6))
    return "" if abs(score) <= SURPRISE else (
        f"its samples are {abs(score):.0f} standard deviations {'less' if score > 0 else 'more'} likely under the "
        "weights here than samples at the temperature that was asked for")

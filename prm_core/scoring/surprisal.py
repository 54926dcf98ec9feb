"""How unexpected a step's tokens are to the backbone, as a term of the step's logit (METHODS 8)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from prm_core.models.chains import ChainBatch
from prm_core.models.likelihood import reduce_by_step

# Tokens whose vocabulary logits exist at one time, which bounds the memory of large vocabularies; and tokens they are
# normalised for at one time, in float32, which a core's cache holds: twice as fast as all at once.
CHUNK, BLOCK = 512, 8
FEATURES = ("lowest", "mean", "sum", "lowest_number", "sum_number", "capped_lowest", "capped_mean",
            "capped_lowest_number")
# Of a term that reads the chain before a step too: the lowest so far of each, and how far on the step is.
HISTORY = (*(f"{name}_so_far" for name in FEATURES), "place", "first")
# How many features a term may read: the first few of a step, or all there are.
COUNTS = (*range(1, len(FEATURES) + 1), len(FEATURES) + len(HISTORY))
# Steps before one beyond which it is far on.
FAR = 10
# Below so many nats one surprise is as good as another. Without these a linear term cannot tell an unusual text that is
# right, whose surprise has no limit, from a wrong number, and learns that the least likely text is the best.
CAP = -5.0


@torch.no_grad()
def token_logprobs(hidden: Tensor, vocabulary: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each token, (tokens,) float32, as a measurement: no gradient goes back through it.

    Args:
        hidden: last hidden state of the token before, (tokens, width).
        vocabulary: output embeddings, (vocabulary, width).
        targets: the tokens, (tokens,).
    """
    result = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(targets), CHUNK):
        part = slice(start, start + CHUNK)
        logits = nn.functional.linear(hidden[part], vocabulary)
        total = torch.cat([block.float().logsumexp(-1) for block in logits.split(BLOCK)])
        result[part] = logits.gather(1, targets[part, None]).squeeze(1).float() - total
    return result


class Surprisal(nn.Module):
    """A linear term of a step's logit over what its tokens' probabilities are.

    The features of a step: its lowest log-probability, their mean, their sum (of 50 tokens as one), and of the tokens
    with a digit in them, which carry the step's facts, again the lowest and the sum (of 10); and the lowest, the mean
    and the lowest of a digit once more, no lower than CAP. A learned reading of single tokens was tried and dropped: it
    fits the training problems and does not carry over to others.

    Args:
        width: of the hidden states.
        vocabulary_size: rows of the vocabulary head, a frozen copy of the backbone's own: labels may not move what
            surprisal is measured with.
        count: of the features, those that it reads; a model saved before there were all reads the first few. More than
            there are of a step alone: also the lowest of each so far in the chain, which tells an unexpected step from
            one of a text that is unexpected as a whole, and how many steps came before.
    """

    def __init__(self, width: int, vocabulary_size: int, count: int = len(FEATURES)) -> None:
        super().__init__()
        self.vocabulary = nn.Parameter(torch.zeros(vocabulary_size, width), requires_grad=False)
        self.register_buffer("numbers", torch.zeros(vocabulary_size, dtype=torch.bool))
        self.weight = nn.Parameter(torch.zeros(count))

    def forward(self, features: Tensor) -> Tensor:
        """The term for each slot, (batch, slots), of its `features`."""
        # Not a matrix product: reduced precision would round sums of hundreds.
        return (features * self.weight.float()).sum(-1)

    def features(self, hidden: Tensor, batch: ChainBatch, whole_chain: bool = False) -> Tensor:
        """The features of each slot, 0 where there is no step: (batch, slots, features).

        Args:
            hidden: last hidden states, (batch, seq, width).
            batch: the rows they are of.
            whole_chain: of the least expected step up to and with the slot's, feature by feature, instead of that step.
        """
        own = self.of_steps(hidden, batch)
        lowest = self.over_chain(own, batch)
        return self.with_history(lowest if whole_chain else own, lowest, steps_before(batch))

    @property
    def history(self) -> bool:
        """Whether it reads the chain before a step."""
        return len(self.weight) > len(FEATURES)

    def with_history(self, features: Tensor, lowest: Tensor, before: Tensor) -> Tensor:
        """The features that the term reads, of a step's (or chain's) own: (…, slots, features).

        Args:
            lowest: of each feature, the lowest so far in the chain, the step's own among them.
            before: how many steps came before, (…, slots).
        """
        if not self.history:
            return features
        place = torch.stack([before.clamp(0, FAR) / FAR, (before <= 0).float()], dim=-1)
        return torch.cat([features, lowest, place.to(features).expand(*features.shape[:-1], 2)], dim=-1)

    def over_chain(self, features: Tensor, batch: ChainBatch) -> Tensor:
        """Of each slot's features and those of the steps before it, the lowest: (batch, slots, features)."""
        if batch.lineage is None:
            return features.cummin(1).values
        before = features[:, None, :, :].expand(-1, batch.lineage.shape[1], -1, -1)
        return before.where(batch.lineage[..., None], 0.0).amin(2)

    def of_steps(self, hidden: Tensor, batch: ChainBatch) -> Tensor:
        """The features of each slot's own step, (batch, slots, features)."""
        rows, columns = (batch.steps >= 0).nonzero(as_tuple=True)
        before = columns - 1 if batch.previous is None else batch.previous[rows, columns]
        logprob = hidden.new_zeros(batch.ids.shape, dtype=torch.float32)
        logprob[rows, columns] = token_logprobs(hidden[rows, before], self.vocabulary, batch.ids[rows, columns])
        # Other tokens count as certain, which lowers neither.
        both = torch.cat([logprob, logprob.where(self.numbers[batch.ids], 0.0)])
        steps, count = batch.steps.repeat(2, 1), batch.ends.shape[1]
        lowest, lowest_number = reduce_by_step(both, steps, count, "amin").chunk(2)
        total, total_number = reduce_by_step(both, steps, count, "sum").chunk(2)
        length = reduce_by_step((batch.steps >= 0).float(), batch.steps, count, "sum").clamp(min=1)
        mean = total / length
        found = [lowest, mean, total / 50, lowest_number, total_number / 10,
                 *(feature.clamp(min=CAP) for feature in (lowest, mean, lowest_number))]
        return torch.stack(found[: len(self.weight)], dim=-1)


def steps_before(batch: ChainBatch) -> Tensor:
    """How many steps each slot's has before it in its chain, (batch or 1, slots)."""
    if batch.lineage is None:
        return torch.arange(batch.ends.shape[1], device=batch.ends.device)[None]
    return batch.lineage.sum(-1) - 1


def mark_numbers(surprisal: Surprisal, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tells a new surprisal's term which tokens have a digit in them."""
    size = min(len(tokenizer), len(surprisal.numbers))
    texts = tokenizer.batch_decode([[token] for token in range(size)])
    surprisal.numbers[:size] = torch.tensor([any(letter.isdigit() for letter in text) for text in texts])


def saved_count(file: Path) -> int:
    """How many of the features the term in a file reads; those of a step where it can be none."""
    with safe_open(file, "pt") as saved:
        count = saved.get_slice("weight").get_shape()[0]
    return count if count in COUNTS else len(FEATURES)

"""Tokens that no text can spell: how a tokenizer gets them, and a model the rows for them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from prm_core.turns import MARKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What the boundary takes the place of.
LINE_BREAK = "\n"


def tokens(separator: str) -> tuple[str, ...]:
    """The boundary and the marks of turns, in the order in which they are added."""
    return (separator, *MARKS)


def marked(tokenizer: PreTrainedTokenizerBase, separator: str) -> PreTrainedTokenizerBase:
    """The tokenizer with the boundary and the marks as special tokens; the given one where it has them all."""
    from tokenizers import AddedToken

    known = special_tokens(tokenizer)
    missing = [token for token in tokens(separator) if token not in known]
    if not missing:
        return tokenizer
    own = copy.deepcopy(tokenizer)
    own.add_tokens([AddedToken(token, normalized=False, special=True) for token in missing], special_tokens=True)
    return own


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Tokens that text spells only where it is read with special tokens in it."""
    return {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}


def give_rows(model: PreTrainedModel, before: PreTrainedTokenizerBase, separator: str) -> None:
    """Gives a model rows, in its embeddings and its output layer, for the tokens that `marked` adds to its tokenizer:
    each the mean of the rows of the text it takes the place of, so that a frozen model reads about that text. The same
    model gets the same rows every time. One that knows the tokens stays as it is.

    Args:
        model: any transformer with embeddings.
        before: its tokenizer, as it came.
    """
    import torch

    after = marked(before, separator)
    if after is before:
        return
    if len(after) > model.get_input_embeddings().num_embeddings:
        # Without the library's random rows: the same base must give the same model.
        model.resize_token_embeddings(len(after), mean_resizing=False)
    known = special_tokens(before)
    with torch.no_grad():
        layers = [model.get_input_embeddings(), model.get_output_embeddings()]
        weights = {layer.weight.data_ptr(): layer.weight for layer in layers if layer is not None}
        for token in tokens(separator):
            if token in known:
                continue
            stands_for = before.encode(MARKS.get(token, LINE_BREAK), add_special_tokens=False)
            number = after.convert_tokens_to_ids(token)
            for weight in weights.values():
                weight[number] = weight[stands_for].float().mean(0).to(weight.dtype)

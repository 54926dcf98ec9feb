"""A small word-level tokenizer with byte fallback, for models trained from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prm_core.models.marks import tokens
from prm_core.turns import BOUNDARY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def train_tokenizer(
    texts: Iterable[str], special: Sequence[str] = tokens(BOUNDARY), max_words: int = 4000
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose vocabulary is the 256 bytes plus every frequent word and number of `texts`.

    A word of the vocabulary is one token (`ignore_merges`, as in Llama 3); anything else falls back to its bytes, so
    no text is unknown. The special tokens, by default the boundary and the marks of turns, no text spells.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]|\s"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    counts = Counter(piece for text in texts for piece, _ in split.pre_tokenize_str(" " + text))
    # Ties in alphabetical order: the vocabulary must not depend on hashing.
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:max_words]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [PAD, BOS, EOS, *special]
    vocabulary = dict.fromkeys([*special, *alphabet, *words])
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(vocabulary)}, [], ignore_merges=True))
    # A word is the same token at the start of a text as inside it.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)

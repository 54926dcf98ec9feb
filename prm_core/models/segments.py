"""How the plain text of a policy that knows no boundary becomes steps: by line, blank line, number, or not at all.

Where a reward model reads a step's score is another matter (`encoder.py`): whatever a step's text is, lines in it stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prm_core.errors import InputError
from prm_core.models.encoder import EncodedChain, Encoder
from prm_core.registry import Registry
from prm_core.types import Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from prm_core.config import EncoderConfig

# (start, end) of each step in a text, in order, without what stands between them; none is blank.
Segmenter = Callable[[str], Iterator[tuple[int, int]]]

SEGMENTERS: Registry[Segmenter] = Registry("way to split a text into steps")
# What joins two steps of each kind.
JOINERS = {"line": "\n", "blank_line": "\n\n", "numbered": "\n", "message": "\n"}
NUMBER = re.compile(r"(?m)^[ \t]*(?:step[ \t]+\d+|\d+)[.:)]", re.IGNORECASE)


def _between(text: str, cuts: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The stretches between cuts (from, to), those that are blank left out."""
    start = 0
    for end, following in (*cuts, (len(text), len(text))):
        if text[start:end].strip():
            yield start, end
        start = following


@SEGMENTERS.register("line")
def lines(text: str) -> Iterator[tuple[int, int]]:
    """A step a line."""
    yield from _between(text, [match.span() for match in re.finditer(r"\n", text)])


@SEGMENTERS.register("blank_line")
def blank_lines(text: str) -> Iterator[tuple[int, int]]:
    """Steps with a blank line between them, as most chat models write."""
    yield from _between(text, [match.span() for match in re.finditer(r"\n[ \t]*\n\s*", text)])


@SEGMENTERS.register("numbered")
def numbered(text: str) -> Iterator[tuple[int, int]]:
    """Steps that begin with `Step 1:`, `1.` or `1)` at the start of a line; what stands before the first is a step."""
    starts = [match.start() for match in NUMBER.finditer(text)]
    yield from _between(text, [(len(text[:start].rstrip("\n")), start) for start in starts])


@SEGMENTERS.register("message")
def message(text: str) -> Iterator[tuple[int, int]]:
    """All of it is one step."""
    yield from _between(text, [])


class TextEncoder(Encoder):
    """Encodes chains for a policy that writes plain text: its steps are joined as it would join them, and what it
    writes is split by a segmenter. A step ends, for scores placed on the policy's tokens, at the token that holds its
    last character."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: EncoderConfig) -> None:
        super().__init__(tokenizer, config)
        # There are no marks in its chains, and the model has no rows for them.
        self.tokenizer = tokenizer
        self._segments = SEGMENTERS[config.policy_steps]
        self._joiner = list(self._tokenized(JOINERS[config.policy_steps]))

    def encode_prompt(self, prompt: str) -> list[int]:
        """Ids of the prompt, where the first step begins: behind the chat template's header, else on the next line."""
        return [*super().encode_prompt(prompt)[:-1], *([] if self._chat else self._joiner)]

    def encode(self, prompt: str, steps: Sequence[Step | str], *, end: bool = False, may_be_empty: bool = False
               ) -> EncodedChain:
        ids = self.encode_prompt(prompt)
        prompt_length, step_ends = len(ids), []
        for index, item in enumerate(steps):
            text = item if isinstance(item, str) else item.text
            block = [*self._tokenized(text), *self._joiner]
            if not text:
                raise InputError(f"step {index} is empty; remove it or give its text")
            if len(step_ends) < index or len(ids) + len(block) > self.config.max_length - end:
                continue
            ids += block
            step_ends.append(len(ids) - 1)
        if steps and not step_ends and not may_be_empty:
            raise InputError(f"the prompt ({prompt_length} tokens) and its first step do not fit encoder.max_length "
                             f"{self.config.max_length}; shorten them or raise the limit")
        scored = [False] * prompt_length + [True] * (len(ids) - prompt_length + end)
        return EncodedChain([*ids, *[self.eos_id] * end], prompt_length, step_ends, scored, len(steps) - len(step_ends))

    def split_steps(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """(text, position of its last token in `ids`) of each step of sampled ids, up to the end of the chain."""
        own = list(ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids)
        text = self._decoded(own)
        steps, at = [], 0
        for start, end in self._segments(text):
            # The first prefix that holds the step's last character; a character of several tokens is there with its
            # last one.
            low, high = at, len(own) - 1
            while low < high:
                middle = (low + high) // 2
                if self._decoded(own[: middle + 1])[:end] == text[:end]:
                    high = middle
                else:
                    low = middle + 1
            steps.append((text[start:end], low))
            at = low
        return steps

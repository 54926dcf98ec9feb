"""The one encoder: (prompt, steps) to token ids and step-end positions, for training, search, evaluation and serving.

It owns the step boundary. A chain is `[bos] prompt SEP step SEP step SEP … SEP [eos]`, where SEP is one token that is
put in by id, never by tokenising joined text, so it cannot merge with its neighbours; a step is scored at the SEP that
ends it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.types import Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# Texts whose token ids are remembered.
TEXTS_KEPT = 50_000


@dataclass(frozen=True, slots=True)
class EncodedChain:
    """Token ids of a chain.

    Attributes:
        ids: token ids, without padding.
        prompt_length: how many of them are the prompt with its SEP.
        step_ends: position of the SEP that ends each kept step.
        scored: for each position, whether the policy wrote the token (step text and SEP, not observations).
        truncated_steps: whole trailing steps dropped because they did not fit.
    """

    ids: list[int]
    prompt_length: int
    step_ends: list[int]
    scored: list[bool]
    truncated_steps: int


def without_separator(steps: Sequence[Step], separator: str) -> tuple[list[Step], int]:
    """Steps from outside as the encoder takes them, a space in the separator's place, and how many of them held it."""
    held = sum(separator in step.text or separator in step.observation for step in steps)
    return [Step(step.text.replace(separator, " "), step.observation.replace(separator, " "), step.agent)
            for step in steps], held


def say_held(held: int, separator: str, where: str = "") -> None:
    """Logs how many steps held the separator, where any did."""
    if held:
        log.warning("%s%d steps hold the separator %r; a space takes its place", where and f"{where}: ", held,
                    separator)


class Encoder:
    """Encodes chains for one tokenizer.

    Args:
        tokenizer: any Hugging Face tokenizer.
        config: separator text, length limit, chat template.

    Raises:
        InputError: the separator is not exactly one token of this tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: EncoderConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        ids = tokenizer.encode(config.separator, add_special_tokens=False)
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise InputError(
                f"encoder.separator {config.separator!r} is {len(ids)} tokens ({ids}) of this tokenizer, not one; "
                "name a separator it has as a single token"
            )
        self.separator_id: int = ids[0]
        # Of its own, because the setting stays in a tokenizer: what a text spells, "<|im_end|>" too, is text.
        plain = copy.deepcopy(tokenizer)
        # Chains of a tree share most of their steps.
        self._tokenized = lru_cache(TEXTS_KEPT)(
            lambda text: tuple(plain.encode(text, add_special_tokens=False, split_special_tokens=True)))
        self.bos_ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end-of-sequence token; the sampler could never stop")
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def _text_ids(self, text: str, what: str) -> Sequence[int]:
        ids = self._tokenized(text)
        # In the text too: "\n\n" may be a token of its own, but as text it would be a boundary.
        if self.separator_id in ids or self.config.separator in text:
            raise InputError(
                f"{what} holds the step separator {self.config.separator!r}; split it into steps there, or configure "
                "a separator that never occurs in the text"
            )
        return ids

    def has_room(self, prompt: str) -> bool:
        """Whether a step of one token with its SEP fits behind a prompt."""
        return len(self.encode_prompt(prompt)) + 2 <= self.config.max_length

    def encode_prompt(self, prompt: str) -> list[int]:
        """Ids of the prompt up to and with its SEP, where the first step begins."""
        if self.config.chat_template:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            return [*self.tokenizer.encode(text, add_special_tokens=False), self.separator_id]
        # A question may run over several lines; only steps may not hold the separator.
        ids = self._tokenized(prompt)
        return [*self.bos_ids, *ids, self.separator_id]

    def encode_steps(self, steps: Sequence[Step | str]) -> list[list[tuple[int, bool]]]:
        """(id, written by the policy) of each step with its SEP and of its observation, which comes before the SEP."""
        blocks = []
        for index, item in enumerate(steps):
            step = Step(item) if isinstance(item, str) else item
            ids = self._text_ids(step.text, f"step {index}")
            if not ids:
                raise InputError(f"step {index} is empty; remove it or give its text")
            block = [(token, True) for token in ids]
            if step.observation:
                block += [(token, False) for token in self._text_ids(step.observation, f"observation of step {index}")]
            blocks.append([*block, (self.separator_id, True)])
        return blocks

    def encode(
        self, prompt: str, steps: Sequence[Step | str], *, end: bool = False, may_be_empty: bool = False
    ) -> EncodedChain:
        """Encodes a chain.

        Args:
            prompt: the question.
            steps: its steps, in order.
            end: append the end-of-sequence token, as warm-up does, so that a policy learns to stop.
            may_be_empty: no room for any step is no error; the caller counts what was dropped.

        Raises:
            InputError: an empty step, a step holding the separator, or a prompt that leaves no room for one step.
        """
        ids = self.encode_prompt(prompt)
        limit = self.config.max_length - end
        scored = [False] * len(ids)
        prompt_length = len(ids)
        step_ends: list[int] = []
        for block in self.encode_steps(steps):
            if len(ids) + len(block) > limit:
                break
            ids += [token for token, _ in block]
            scored += [written for _, written in block]
            step_ends.append(len(ids) - 1)
        if steps and not step_ends and not may_be_empty:
            raise InputError(
                f"the prompt ({prompt_length} tokens) and its first step do not fit encoder.max_length "
                f"{self.config.max_length}; shorten them or raise the limit"
            )
        if end:
            ids.append(self.eos_id)
            scored.append(True)
        return EncodedChain(ids, prompt_length, step_ends, scored, len(steps) - len(step_ends))

    def split_steps(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """(text, position of its last token in `ids`) of each step of sampled ids, which follow the prompt's SEP.

        A step ends at its SEP, or where the chain ends without one; empty steps are none.
        """
        steps: list[tuple[str, int]] = []
        start = 0
        for position, token in enumerate(ids):
            if token in (self.separator_id, self.eos_id):
                self._append_step(steps, ids[start:position], position)
                start = position + 1
                if token == self.eos_id:
                    return steps
        self._append_step(steps, ids[start:], len(ids) - 1)
        return steps

    def _append_step(self, steps: list[tuple[str, int]], ids: Sequence[int], end: int) -> None:
        # A token other than SEP can still read like it (a byte, a double line break); as text it would be a boundary.
        text = self.tokenizer.decode(ids, skip_special_tokens=True).replace(self.config.separator, " ").strip()
        if text:
            steps.append((text, end))

    def decode_steps(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Step texts of sampled ids, as `split_steps`."""
        return tuple(text for text, _ in self.split_steps(ids))

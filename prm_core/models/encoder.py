"""The one encoder: (prompt, steps) to token ids and step-end positions, for training, search, evaluation and serving.

It owns the step boundary. A chain is `[bos] prompt SEP step SEP step SEP … SEP [eos]`, where SEP is a token that no
text can spell; it is put in by id, and a step is scored at the SEP that ends it. The parts of a turn have marks of the
same kind (`turns.py`). A tokenizer without these tokens gets them, and its model a row for each (`marks.py`).
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.models.marks import marked, tokens
from prm_core.models.text_cache import TextCache
from prm_core.turns import AGENT, BOUNDARY, MARKS, WAIT, Part, from_parts, heard, is_empty, parts, written
from prm_core.types import Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for the question while a chat template is taken apart.
QUESTION = "prm0question0prm"


@dataclass(frozen=True, slots=True)
class EncodedChain:
    """Token ids of a chain.

    Attributes:
        ids: token ids, without padding.
        prompt_length: how many of them are the prompt with its SEP.
        step_ends: position of the SEP that ends each kept step.
        scored: for each position, whether the policy wrote the token (what it said and called and SEP, not replies).
        truncated_steps: whole trailing steps dropped because they did not fit.
    """

    ids: list[int]
    prompt_length: int
    step_ends: list[int]
    scored: list[bool]
    truncated_steps: int


class Encoder:
    """Encodes chains for one tokenizer.

    Args:
        tokenizer: any Hugging Face tokenizer.
        config: boundary, renderer, length limit, chat template.

    Raises:
        InputError: the boundary is no single token of this tokenizer, or text can spell it.

    Attributes:
        tokenizer: the given one, with the boundary and the marks of turns in it.
        separator_id: of the token that ends the prompt and every step.
        tokens: the boundary and marks that are put in by id.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: EncoderConfig) -> None:
        if config.chat_template and not tokenizer.chat_template:
            raise InputError("encoder.chat_template is true, and the tokenizer has no chat template; set it to false, "
                             "or name a model that was trained to chat")
        self.config = config
        self.tokenizer = tokenizer if config.renderer == 1 else marked(tokenizer, config.separator)
        ids = self.tokenizer.encode(config.separator, add_special_tokens=False)
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise InputError(
                f"encoder.separator {config.separator!r} is {len(ids)} tokens ({ids}) of this tokenizer, not one; "
                "name a separator it has as a single token"
            )
        self.separator_id: int = ids[0]
        # Of its own, because the setting stays in a tokenizer: what a text spells, "<|im_end|>" too, is text.
        plain = copy.deepcopy(self.tokenizer)
        self._tokenized = TextCache(
            lambda text: tuple(plain.encode(text, add_special_tokens=False, split_special_tokens=True)))
        self._marks: dict[str, int] = {}
        # That are put in by id, beside those that every tokenizer has.
        self.tokens = tokens(config.separator) if config.renderer > 1 else (config.separator,)
        if config.renderer > 1:
            self._marks = {mark: self.tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
            if self.separator_id in self._tokenized(f"a{config.separator}b"):
                raise InputError(f"encoder.separator {config.separator!r} is a token that text holds; leave the "
                                 f"setting out, which adds {BOUNDARY}, or name a special token")
        self._names = {number: mark for mark, number in self._marks.items()}
        # What some tokenizers put before every text.
        letter = self._tokenized("x")
        if not letter:
            raise InputError("the tokenizer reads no token in a text; copy the model's folder whole")
        self._before = self._decoded(letter).removesuffix("x")
        self.bos_ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end-of-sequence token; the sampler could never stop")
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._chat = self._chat_around() if config.chat_template and config.renderer > 1 else None

    def _chat_around(self) -> tuple[list[int], list[int]]:
        """Ids that the chat template puts before and after a question."""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True)
        before, found, after = text.partition(QUESTION)
        if not found or QUESTION in after:
            raise InputError("encoder.chat_template: the tokenizer's chat template does not give a user's message once "
                             "and as it is; set it to false")
        return (self.tokenizer.encode(before, add_special_tokens=False),
                self.tokenizer.encode(after, add_special_tokens=False))

    def has_room(self, prompt: str) -> bool:
        """Whether a step of one token with its SEP fits behind a prompt."""
        return len(self.encode_prompt(prompt)) + 2 <= self.config.max_length

    def encode_prompt(self, prompt: str) -> list[int]:
        """Ids of the prompt up to and with its SEP, where the first step begins."""
        if self._chat is not None:
            before, after = self._chat
            return [*before, *self._tokenized(prompt), *after, self.separator_id]
        if self.config.chat_template:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            with self._tokenized.lock:
                return [*self.tokenizer.encode(text, add_special_tokens=False), self.separator_id]
        return [*self.bos_ids, *self._tokenized(prompt), self.separator_id]

    def encode_steps(self, steps: Sequence[Step | str]) -> Iterator[list[tuple[int, bool]]]:
        """(id, written by the policy) of each step's tokens; what was heard comes before the SEP that ends the step."""
        for index, item in enumerate(steps):
            yield self.encode_step(Step(item) if isinstance(item, str) else item, index)

    def encode_step(self, step: Step, index: int) -> list[tuple[int, bool]]:
        """What `encode_steps` gives for the step of this index."""
        if is_empty(step):
            raise InputError(f"step {index} is empty; remove it or give its text")
        block: list[tuple[int, bool]] = []
        for part in self._parts(step):
            if part.mark:
                block.append((self._marks[part.mark], part.written))
            block += [(token, part.written) for token in self._tokenized(part.text)]
        return [*block, (self.separator_id, True)]

    def _parts(self, step: Step) -> Iterator[Part]:
        if self.config.renderer > 1:
            yield from parts(step)
            return
        # It reads no names.
        yield Part("", written(replace(step, agent="")), True)
        if said := heard(step):
            yield Part("", said, False)

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
            InputError: an empty step, or a prompt that leaves no room for one step.
        """
        ids = self.encode_prompt(prompt)
        limit = self.config.max_length - end
        scored = [False] * len(ids)
        prompt_length = len(ids)
        step_ends: list[int] = []
        full = False
        for block in self.encode_steps(steps):
            # The blocks behind are looked at all the same: an empty step is an error wherever it is.
            full = full or len(ids) + len(block) > limit
            if full:
                continue
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

    def decode(self, ids: Sequence[int]) -> tuple[str, tuple[Step, ...]]:
        """Prompt and steps of an encoded chain, as they were where the tokenizer keeps every text and no chat template
        wraps the prompt."""
        prompt, *blocks = self._blocks(ids[len(self.bos_ids) :])
        return self._decoded(prompt, text=True), tuple(self.turn(block) for block in blocks if block)

    def _blocks(self, ids: Sequence[int]) -> list[list[int]]:
        """Ids between boundaries, up to the end of the chain; the last is empty where the chain ends with one."""
        found: list[list[int]] = [[]]
        for token in itertools.takewhile(lambda token: token != self.eos_id, ids):
            if token == self.separator_id:
                found.append([])
            else:
                found[-1].append(token)
        return found

    @property
    def turn_ends(self) -> tuple[int, ...]:
        """Ids of the tokens with which an agent ends its part of a turn: the boundary, and that it waits."""
        return (self.separator_id, *(self._marks[mark] for mark in (WAIT,) if mark in self._marks))

    def opening(self, agent: str) -> list[int]:
        """Ids that open a turn of an agent of this name, which it does not write itself; none for no name."""
        return [self._marks[AGENT], *self._tokenized(agent)] if agent and AGENT in self._marks else []

    def turn(self, ids: Sequence[int]) -> Step:
        """The turn of ids without its boundary; see `decode`."""
        pieces: list[tuple[str, list[int]]] = [("", [])]
        for token in ids:
            if token in self._names:
                pieces.append((self._names[token], []))
            else:
                pieces[-1][1].append(token)
        return from_parts((mark, self._decoded(piece, text=True)) for mark, piece in pieces if mark or piece)

    def plain_tokens(self) -> list[int]:
        """Tokens that are a text of their own which reads as that token: no marks, no blanks, no parts of letters."""
        found = []
        for token in range(len(self.tokenizer)):
            text = self.turn([token]).text
            if text.strip() and next(iter(self.encode_steps([text])))[:-1] == [(token, True)]:
                found.append(token)
        return found

    def as_text(self, ids: Sequence[int]) -> str:
        """Ids as one string that the tokenizer, reading special tokens in it, reads as these ids; `from_text` does."""
        found, special = "", self._special
        for is_special, group in itertools.groupby(ids, special.__contains__):
            run = list(group)
            found += "".join(special[token] for token in run) if is_special else self._decoded(run, text=True)
        return found

    def from_text(self, text: str) -> list[int]:
        """Ids of a string in which the tokenizer's special tokens are spelled; no beginning is put before it."""
        special = {text: number for number, text in self._special.items()}
        ids: list[int] = []
        for number, piece in enumerate(self._spelled.split(text) if special else [text]):
            ids += [special[piece]] if number % 2 else self._tokenized(piece.removeprefix(self._before))
        return ids

    @cached_property
    def _special(self) -> dict[int, str]:
        """Tokens that are put in as they are spelled."""
        return {number: token.content for number, token in self.tokenizer.added_tokens_decoder.items()}

    @cached_property
    def _spelled(self) -> re.Pattern[str]:
        longest_first = sorted(self._special.values(), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def _decoded(self, ids: Sequence[int], *, text: bool = False) -> str:
        found = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found.removeprefix(self._before) if text else found

    def split_steps(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """(text, position of its last token in `ids`) of each step of sampled ids, which follow the prompt's SEP.

        A step ends at its SEP, or where the chain ends without one; blank steps are none.
        """
        steps: list[tuple[str, int]] = []
        at = 0
        for block in self._blocks(ids):
            text = self._decoded(block, text=True)
            # The last token of a chain that was cut off is no SEP.
            end = min(at + len(block), len(ids) - 1)
            if text.strip():
                steps.append((text, end))
            at += len(block) + 1
        return steps

    def decode_steps(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Step texts of sampled ids, as `split_steps`."""
        return tuple(text for text, _ in self.split_steps(ids))

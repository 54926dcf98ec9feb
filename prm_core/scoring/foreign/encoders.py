"""How chains become tokens for the process reward models of other projects, one encoder a family."""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.models.encoder import QUESTION
from prm_core.models.marks import special_tokens
from prm_core.turns import heard, is_empty, written
from prm_core.types import Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """Token ids of a chain, without padding; the position where each kept step is scored; steps that did not fit."""

    ids: list[int]
    step_ends: list[int]
    truncated_steps: int


class ForeignEncoder(ABC):
    """Chains to tokens, as one family of models was trained.

    The boundary that ends each step is put in by id, and a score is read there alone, whatever a text spells. What a
    step heard follows what it wrote after a space, before the boundary: context, with no score of its own.

    Args:
        tokenizer: the model's.
        separator: text of the boundary.
        max_length: tokens; steps that do not fit whole are dropped from the end, counted.

    Raises:
        InputError: the tokenizer has no such boundary.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, separator: str, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.config = EncoderConfig(separator=separator, max_length=max_length, renderer=1)
        # Fast tokenizers raise "Already borrowed" when threads share them.
        self._lock = threading.Lock()
        # Of its own, because how special tokens are read stays in a tokenizer.
        self._plain = copy.deepcopy(tokenizer)
        self._special = {*tokenizer.all_special_tokens, *special_tokens(tokenizer)}
        self.boundary = self._boundary()
        if not self.boundary or tokenizer.unk_token_id in self.boundary:
            raise InputError(f"separator {separator!r} is nothing this tokenizer knows (ids {self.boundary}); name the "
                             "one the model was trained with")

    @abstractmethod
    def _boundary(self) -> list[int]:
        """Ids that end a step."""

    @abstractmethod
    def _blocks(self, prompt: str, texts: Sequence[str]) -> Iterator[list[int]]:
        """Ids of each step without its boundary; those of the first begin with the prompt's."""

    def encode(self, prompt: str, steps: Sequence[Step | str]) -> ForeignChain:
        """Encodes a chain; the steps that do not fit, all of them if need be, are left out from the end and counted.
        Thread-safe.

        Raises InputError for an empty step.
        """
        texts = [self._text(index, Step(step) if isinstance(step, str) else step) for index, step in enumerate(steps)]
        ids: list[int] = []
        ends: list[int] = []
        with self._lock:
            for block in self._blocks(prompt, texts):
                if len(ids) + len(block) + len(self.boundary) > self.config.max_length:
                    break
                ids += [*block, *self.boundary]
                ends.append(len(ids) - 1)
        return ForeignChain(ids, ends, len(texts) - len(ends))

    def _text(self, index: int, step: Step) -> str:
        if is_empty(step):
            raise InputError(f"step {index} is empty; remove it or give its text")
        return " ".join(filter(None, (written(step), heard(step))))

    def _ids(self, text: str) -> list[int]:
        """Ids of a text that may hold special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _plain_ids(self, text: str) -> list[int]:
        """Ids of a text from outside: what spells a special token in it is text."""
        return self._plain.encode(text, add_special_tokens=False, split_special_tokens=True)

    def _continuation(self, text: str, after: str) -> list[int]:
        """Ids of `text` where it follows `after`; alone, many tokenizers put a space before it. Where it would merge
        with what is before it, and where it spells special tokens, it is read alone."""
        ids = None if self._spells_special(text) else self._behind(text, after)
        return self._plain_ids(text) if ids is None else ids

    def _behind(self, text: str, before: str) -> list[int] | None:
        """Ids of `text` behind another; None where the two merge."""
        first, whole = self._ids(before), self._ids(before + text)
        return whole[len(first) :] if whole[: len(first)] == first else None

    def _spells_special(self, *texts: str) -> bool:
        return any(token in text for token in self._special for text in texts)

    def _one_token(self, text: str) -> list[int]:
        ids = self._behind(text, before="x")
        if ids is None:
            raise InputError(f"separator {self.config.separator!r} merges with the text before it in this tokenizer; "
                             "name one it keeps apart")
        if len(ids) != 1:
            raise InputError(f"separator {self.config.separator!r} is {len(ids)} tokens ({ids}) of this tokenizer, not "
                             "one; name the model's own style and separator")
        return ids


class TokenClassificationEncoder(ForeignEncoder):
    """`[bos] prompt step SEP step SEP …`, each part tokenised alone; SEP may be several tokens.

    Source: `PRMTrainer.tokenize_row` of TRL 1.16.
    """

    def _boundary(self) -> list[int]:
        return self._ids(self.config.separator)

    def _blocks(self, prompt: str, texts: Sequence[str]) -> Iterator[list[int]]:
        bos = self.tokenizer.bos_token_id
        start = [*([] if bos is None else [bos]), *self._plain_ids(prompt)]
        for text in texts:
            yield [*start, *self._plain_ids(text)]
            start = []


class BoundaryHeadEncoder(ForeignEncoder):
    """The tokenizer's chat: system, user the prompt, assistant `step SEP step SEP …`.

    Source: model card of Qwen/Qwen2.5-Math-PRM-7B. What its template puts after the last SEP is left out: no score of
    a causal model depends on it.
    """

    def _boundary(self) -> list[int]:
        start = self._chat("x")
        whole = self._template([*self._messages("x"), {"role": "assistant", "content": "y"}], answer=False)
        if not whole.startswith(f"{start}y"):
            raise InputError("the tokenizer's chat template does not put an assistant's text as it is after the header "
                             "that begins it; name a model with a ChatML template")
        return self._one_token(self.config.separator)

    def _blocks(self, prompt: str, texts: Sequence[str]) -> Iterator[list[int]]:
        for index, text in enumerate(texts):
            if index == 0 and self._spells_special(prompt, text):
                before, _, after = self._chat(QUESTION).partition(QUESTION)
                yield [*self._ids(before), *self._plain_ids(prompt), *self._ids(after), *self._plain_ids(text)]
            elif index == 0:
                # As one text: the line break that ends the header may merge with the step's first characters.
                yield self._ids(self._chat(prompt) + text)
            else:
                yield self._continuation(text, after=self.config.separator)

    def _chat(self, prompt: str) -> str:
        return self._template(self._messages(prompt), answer=True)

    @staticmethod
    def _messages(prompt: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": QWEN_SYSTEM}, {"role": "user", "content": prompt}]

    def _template(self, messages: list[dict[str, str]], *, answer: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        except (TemplateError, ValueError) as error:
            raise InputError(f"the tokenizer's chat template takes no system, user and assistant ({error}); save the "
                             "template the model was trained with in its folder") from error


class VocabularyEncoder(ForeignEncoder):
    """`[bos] prompt step SEP⏎step SEP⏎…`, tokenised as this one text would be; SEP stands after a space.

    Source: model card of peiyi9979/math-shepherd-mistral-7b-prm, whose steps begin "Step 1: ".
    """

    def _boundary(self) -> list[int]:
        return self._one_token(f" {self.config.separator}")

    def _blocks(self, prompt: str, texts: Sequence[str]) -> Iterator[list[int]]:
        bos = self.tokenizer.bos_token_id
        # As the tokenizer does on a text: not every one that has a bos token puts it there.
        start = [bos] if self.tokenizer.encode("x")[0] == bos else []
        for index, text in enumerate(texts):
            if index == 0:
                yield [*start, *self._plain_ids(f"{prompt} {text}")]
            else:
                yield self._continuation(f"\n{text}", after=f"x {self.config.separator}")

    def candidates(self) -> list[int]:
        """Ids of '-' and '+'. Raises InputError when one of them is not one token."""
        ids = self._ids("+ -")
        if len(ids) != 2 or self.tokenizer.unk_token_id in ids:
            raise InputError(f"'+ -' is ids {ids} in this tokenizer, not one token for each sign; this is no model of "
                             "style math_shepherd")
        return ids[::-1]

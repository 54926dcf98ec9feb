"""Random chains with targets and preference pairs, as tokens, for tests of trees and of the loss on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import strategies as st

from prm_core.models.encoder import EncodedChain
from prm_core.training.examples import Encoded, EncodedPair

SEP = 9
VOCABULARY = 12
PROMPTS = ([1, SEP], [1, 2, 3, SEP], [1, SEP, 4, SEP])
# Few, so that chains share steps and one is a prefix of another. In the last, an observation: not the policy's.
STEPS = ([5], [5, 6], [6, 6, 6], [7, 8, 5, 6, 10])


def chain(prompt: Sequence[int], steps: Sequence[Sequence[int]]) -> EncodedChain:
    """A chain of token ids; 8 is what a tool answered."""
    ids, ends, scored = list(prompt), [], [False] * len(prompt)
    for step in steps:
        ids += [*step, SEP]
        scored += [*(token != 8 for token in step), True]
        ends.append(len(ids) - 1)
    return EncodedChain(ids, len(prompt), ends, scored, 0)


def pair(prompt: Sequence[int], steps: Sequence[Sequence[int]], chosen: Sequence[int], rejected: Sequence[int]
         ) -> EncodedPair:
    return EncodedPair(chain(prompt, [*steps, chosen]), chain(prompt, [*steps, rejected]))


TARGETS = st.sampled_from([0.0, 1.0, 0.9, 0.25, math.nan])


@st.composite
def examples_of_kind(draw: st.DrawFn, kind: str = "process") -> list[Encoded]:
    """Chains with at least one target each, some of them alike."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        steps = draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=4))
        count = {"process": len(steps), "outcome": 1, "advantage": len(steps) + 1}[kind]
        targets = draw(st.lists(TARGETS, min_size=count, max_size=count))
        if all(map(math.isnan, targets)):
            targets[-1] = 1.0
        found.append(Encoded(chain(draw(st.sampled_from(PROMPTS)), steps), tuple(targets)))
    return found


@st.composite
def preference_pairs(draw: st.DrawFn) -> list[EncodedPair]:
    """Pairs whose two steps differ."""
    found = []
    for _ in range(draw(st.integers(0, 3))):
        chosen, rejected = draw(st.permutations(STEPS))[:2]
        found.append(pair(draw(st.sampled_from(PROMPTS)), draw(st.lists(st.sampled_from(STEPS), max_size=2)), chosen,
                          rejected))
    return found


def least_width(examples: Sequence[Encoded], pairs: Sequence[EncodedPair]) -> int:
    """Tokens of the longest chain, or pair behind its prefix."""
    sizes = [len(example.chain.ids) for example in examples]
    for one in pairs:
        shared = ([one.rejected.prompt_length - 1, *one.rejected.step_ends])[-2] + 1
        sizes.append(len(one.chosen.ids) + len(one.rejected.ids) - shared)
    return max(sizes)

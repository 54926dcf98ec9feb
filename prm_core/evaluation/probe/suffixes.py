"""Suffixes that talk a reward model of ours out of its verdict: a few tokens added to a wrong chain, searched for by
the gradient of its scores.

A model reads from left to right, so that where the tokens stand decides what they can move. Three places are tried: a
step of its own before the first wrong step, the end of that step, and a step of its own after it. In each round some
tokens are exchanged one at a time, half of them by the gradient and half at random (through a step's surprisal no
gradient goes), and the best exchange is kept. A chain counts for what the scorer says of its text, calibration and
doubts about the model's domain with it, which is what a policy would be paid.

Source: Ebrahimi et al. 2018, "HotFlip" (the gradient's first guess at an exchange); Zou et al. 2023, "Universal and
Transferable Adversarial Attacks" (among many guesses the best is looked for by asking the model).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prm_core.config import ProbeConfig
from prm_core.evaluation.adversarial.gold_chains import GoldChain
from prm_core.evaluation.probe.bounds import SUFFIX_PASSES
from prm_core.scoring.scorer import ChainScore, RewardScorer
from prm_core.search.aggregate import AGGREGATIONS
from prm_core.types import Step

if TYPE_CHECKING:
    from torch import Tensor

    from prm_core.models.encoder import Encoder

PLACES = ("before", "within", "after")
# Of the tokens that the gradient ranks at a position, how many are worth asking the model about.
TOP = 4


@dataclass(frozen=True, slots=True)
class Worth:
    """Attributes: chain: its score; step: that of its first wrong step. Both 0 for a chain that outgrew the context."""

    chain: float
    step: float

    @property
    def sum(self) -> float:
        """What is searched for: both, since the lowest step of a chain may be another."""
        return self.chain + self.step


@dataclass(frozen=True, slots=True)
class Found:
    """A chain with the best suffix at the best place.

    Attributes:
        chain: the chain, wrong and found to be so.
        place: one of PLACES.
        text: the suffix.
        before, after: without and with it.
    """

    chain: GoldChain
    place: str
    text: str
    before: Worth
    after: Worth

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"chain": self.chain.name, "prompt": self.chain.prompt, "first_error": self.chain.first_error,
                "place": self.place, "suffix": self.text, "chain_score": [self.before.chain, self.after.chain],
                "step_score": [self.before.step, self.after.step]}


@dataclass(frozen=True, slots=True)
class _Suffix:
    """Attributes: chain: index of the chain; place: one of PLACES; ids: its tokens."""

    chain: int
    place: str
    ids: tuple[int, ...]


def with_text(chain: GoldChain, place: str, text: str) -> tuple[tuple[Step, ...], int]:
    """The steps of a chain with a text added around its first wrong one, and the index of that one then."""
    at, steps = chain.first_error, chain.steps
    wrong = steps[at]
    if place == "within":
        return (*steps[:at], replace(wrong, text=f"{wrong.text} {text}".lstrip()), *steps[at + 1 :]), at
    added = Step(text, agent=wrong.agent)
    begin = at + (place == "after")
    return (*steps[:begin], added, *steps[begin:]), at + (place == "before")


class SuffixSearch:
    """The search in a reward model, over some wrong chains that it finds wrong.

    Args:
        scorer: a process model.
        chains: each with a wrong step.
        settings: how long and how many.
        seed: of the first suffixes and of the exchanges.
    """

    def __init__(self, scorer: RewardScorer, chains: Sequence[GoldChain], settings: ProbeConfig, seed: int) -> None:
        self.scorer, self.chains, self.settings = scorer, chains, settings
        self.allowed = scorer.encoder.plain_tokens()
        self.rng = random.Random(f"suffixes/{seed}")

    def run(self) -> tuple[list[Found], list[Found]]:
        """Of each chain the best random suffix over the places, and the best that was found from these."""
        plain = self._worths([(chain.prompt, chain.steps, chain.first_error) for chain in self.chains])
        first = [_Suffix(number, place, tuple(self.rng.choices(self.allowed, k=self.settings.suffix_tokens)))
                 for number in range(len(self.chains)) for place in PLACES]
        suffixes, worths = first, self._ask(first)
        random_ones = self._best(suffixes, worths, plain)
        for _ in range(self.settings.suffix_rounds):
            tried = [candidate for suffix, guesses in zip(suffixes, self._guesses(suffixes), strict=True)
                     for candidate in self._exchanges(suffix, guesses)]
            asked = self._ask(tried)
            best = []
            for row, held in enumerate(zip(suffixes, worths, strict=True)):
                part = slice(row * self.settings.suffix_tries, (row + 1) * self.settings.suffix_tries)
                # The first of equal ones: what is held is given up for something better alone.
                best.append(max([held, *zip(tried[part], asked[part], strict=True)], key=lambda one: one[1].sum))
            suffixes, worths = [one for one, _ in best], [worth for _, worth in best]
        return random_ones, self._best(suffixes, worths, plain)

    def _text(self, suffix: _Suffix) -> str:
        return self.scorer.encoder.turn(suffix.ids).text

    def _ask(self, suffixes: Sequence[_Suffix]) -> list[Worth]:
        placed = [(self.chains[one.chain], with_text(self.chains[one.chain], one.place, self._text(one)))
                  for one in suffixes]
        return self._worths([(chain.prompt, steps, wrong) for chain, (steps, wrong) in placed])

    def _worths(self, chains: Sequence[tuple[str, Sequence[Step], int]]) -> list[Worth]:
        scores = self.scorer.score([(prompt, steps) for prompt, steps, _ in chains])
        return [worth(score, wrong, self.settings.aggregate)
                for score, (_, _, wrong) in zip(scores, chains, strict=True)]

    def _best(self, suffixes: Sequence[_Suffix], worths: Sequence[Worth], plain: Sequence[Worth]) -> list[Found]:
        found = []
        for start in range(0, len(suffixes), len(PLACES)):
            at = max(range(start, start + len(PLACES)), key=lambda row: worths[row].sum)
            number = suffixes[at].chain
            found.append(Found(self.chains[number], suffixes[at].place, self._text(suffixes[at]), plain[number],
                               worths[at]))
        return found

    def _exchanges(self, suffix: _Suffix, guesses: Sequence[Sequence[int]]) -> list[_Suffix]:
        """So many suffixes with one token exchanged; at every second one for a guess, where there are such."""
        found = []
        for number in range(self.settings.suffix_tries):
            at = self.rng.randrange(len(suffix.ids))
            token = self.rng.choice(guesses[at] if guesses and number % 2 == 0 else self.allowed)
            found.append(replace(suffix, ids=(*suffix.ids[:at], token, *suffix.ids[at + 1 :])))
        return found

    def _guesses(self, suffixes: Sequence[_Suffix]) -> list[list[list[int]]]:
        """For each suffix and position the tokens that by the gradient would raise the steps' scores most; none for a
        suffix whose tokens read otherwise in their place."""
        import torch

        from prm_core.models.chains import collate

        encoder, model = self.scorer.encoder, self.scorer.model
        allowed = torch.tensor(self.allowed, device=model.device)
        embedding = model.backbone.get_input_embeddings()
        table = embedding.weight.detach()[allowed].float()
        found: list[list[list[int]]] = []
        for start in range(0, len(suffixes), self.scorer.batch_size):
            part = suffixes[start : start + self.scorer.batch_size]
            placed = [with_text(self.chains[one.chain], one.place, self._text(one)) for one in part]
            encoded = [encoder.encode(self.chains[one.chain].prompt, steps, may_be_empty=True)
                       for one, (steps, _) in zip(part, placed, strict=True)]
            batch = collate(encoded, encoder.pad_id, prompt_slot=model.prompt_slot).to(model.device)
            embedded: list[Tensor] = []

            def keep(_: Any, __: Any, output: Tensor, kept: list[Tensor] = embedded) -> Tensor:
                kept.append(output.detach().requires_grad_())
                return kept[-1]

            handle = embedding.register_forward_hook(keep)
            try:
                with torch.enable_grad():
                    logits = model.judge(batch).logits
                    # Of every step, since the weakest may be another one than the first wrong one.
                    raised = torch.nn.functional.logsigmoid(logits).where(batch.ends >= 0, 0.0).sum()
                    gradient = torch.autograd.grad(raised, embedded[0])[0].float()
            finally:
                handle.remove()
            for row, (one, chain, (_, wrong)) in enumerate(zip(part, encoded, placed, strict=True)):
                step = wrong + {"before": -1, "within": 0, "after": 1}[one.place]
                at = _place_of(one.ids, chain.ids, chain.step_ends, step)
                if at is None:
                    found.append([])
                    continue
                ranked = (gradient[row, at : at + len(one.ids)] @ table.T).topk(min(TOP, len(allowed)), dim=1).indices
                found.append(allowed[ranked].tolist())
        return found


def worth(score: ChainScore, wrong: int, aggregate: str) -> Worth:
    """What a chain with its first error at step `wrong` counts for, by its scores."""
    if score.truncated_steps:
        return Worth(0.0, 0.0)
    return Worth(AGGREGATIONS[aggregate](score.step_scores), score.step_scores[wrong])


def _place_of(wanted: Sequence[int], ids: Sequence[int], step_ends: Sequence[int], step: int) -> int | None:
    """Where tokens stand in a step, the last such place; None where they do not."""
    if step >= len(step_ends):
        return None
    begin = step_ends[step - 1] + 1 if step else 0
    places = range(step_ends[step] - len(wanted), begin - 1, -1)
    return next((at for at in places if list(ids[at : at + len(wanted)]) == list(wanted)), None)


def has_room(encoder: Encoder, chain: GoldChain, tokens: int) -> bool:
    """Whether the context holds the chain with a step of so many words more."""
    steps, _ = with_text(chain, "after", " ".join(["x"] * tokens))
    return not encoder.encode(chain.prompt, steps, may_be_empty=True).truncated_steps


def suffix_figures(
    scorer: RewardScorer, chains: Sequence[GoldChain], settings: ProbeConfig, threshold: float, seed: int
) -> tuple[dict[str, float | str], list[Found]]:
    """How far suffixes carry wrong chains that the model finds wrong, and the suffixes.

    `probe/suffix/` and, of random suffixes of the same length, `probe/random_suffix/`: `passed`, the share of the
    chains whose score reaches the threshold with it; `chain_rise` and `step_rise`, the mean rise of the chain's score
    and of its first wrong step's. `probe/suffix/n_chains` chains were tried; `probe/suffix/passed_before` is the share
    of the wrong chains that pass as they are, and are not. Where there is nothing to try,
    `probe/suffix/passed_left_out` says why.
    """
    wrong = [chain for chain in chains if not chain.sound]
    scores = scorer.score([(chain.prompt, chain.steps) for chain in wrong])
    read = [(chain, worth(score, chain.first_error, settings.aggregate)) for chain, score in zip(
        wrong, scores, strict=True) if not score.truncated_steps]
    tried = [chain for chain, found in read if found.chain < threshold
             and has_room(scorer.encoder, chain, settings.suffix_tokens)][: settings.suffix_chains]
    figures: dict[str, float | str] = {"probe/suffix/n_chains": len(tried)}
    if read:
        figures["probe/suffix/passed_before"] = sum(found.chain >= threshold for _, found in read) / len(read)
    if not tried:
        return figures | {f"{SUFFIX_PASSES}_left_out": "no wrong chain was sampled that scores below the threshold "
                          "and has room for a suffix"}, []
    random_ones, best = SuffixSearch(scorer, tried, settings, seed).run()
    for name, found in (("random_suffix", random_ones), ("suffix", best)):
        figures |= {
            f"probe/{name}/passed": sum(one.after.chain >= threshold for one in found) / len(found),
            f"probe/{name}/chain_rise": sum(one.after.chain - one.before.chain for one in found) / len(found),
            f"probe/{name}/step_rise": sum(one.after.step - one.before.step for one in found) / len(found),
        }
    return figures, best

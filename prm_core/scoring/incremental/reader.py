"""Scores of chains of which the beginnings are known: a step costs its own tokens, not its history.

Chains are jobs that passes of the model take further, many at once and a long one in pieces. What they come to is what
the scorer itself says, but for rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from prm_core.errors import InputError
from prm_core.models.chains import ChainBatch
from prm_core.models.prefixes.pool import AT_ONCE, LIMIT, PrefixPool, packs
from prm_core.models.prefixes.tree import Place
from prm_core.scoring.domain import NOTHING, News, unreadable
from prm_core.scoring.incremental.nodes import Node, Said, forget, grow, key_of
from prm_core.scoring.scorer import ChainScore, LoadedScorer, RewardScorer
from prm_core.turns import is_empty
from prm_core.types import Step

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray


def reads_on(scorer: LoadedScorer) -> bool:
    """Whether a model's scores of a chain can go on from those of its beginnings: not of an implicit model, which reads
    every chain with two models, nor of one whose attention is of another kind, nor of another project's."""
    return isinstance(scorer, RewardScorer) and scorer.model.kind != "implicit" and packs(scorer.model.backbone)


class Job:
    """A chain that is being scored.

    Attributes:
        left: tokens that are neither known nor computed yet.
        computed: tokens that were computed for it.
        score: once nothing is left, None before.
    """

    __slots__ = ("computed", "ends", "first", "ids", "keys", "left", "nodes", "place", "score", "truncated", "written")

    def __init__(self, nodes: list[Node]) -> None:
        # Beginnings with scores: nothing, the prompt, the prompt and a step, …
        self.nodes = nodes
        self.place = nodes[-1].place
        # Of the prompt or steps that were not known when it started, what they are, and where each ends in the chain;
        # their tokens, from place `first` of the chain on, and which of them the policy wrote.
        self.keys: list[Hashable] = []
        self.ends: list[int] = []
        self.first = self.place.depth
        self.ids: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.written: NDArray[np.bool_] = np.empty(0, dtype=bool)
        self.truncated = 0
        self.left = 0
        self.computed = 0
        self.score: ChainScore | None = None

    @property
    def length(self) -> int:
        """Tokens of the chain."""
        return self.first + len(self.ids)

    def rest(self) -> NDArray[np.int64]:
        """Tokens behind its place."""
        return self.ids[self.place.depth - self.first :]

    def part(self, start: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens from one place of the chain to another, and which of them the policy wrote."""
        here = slice(start - self.first, end - self.first)
        return self.ids[here], self.written[here]


class IncrementalReader:
    """A reward model that goes on from what it has read. Belongs to one thread.

    Args:
        scorer: one for which `reads_on` says yes.
        limit: bytes that are kept.
    """

    def __init__(self, scorer: RewardScorer, limit: int = LIMIT) -> None:
        self.scorer = scorer
        self.pool = PrefixPool(scorer.model.backbone, limit, forget)
        self._nothing = Node(None, None, self.pool.start, None)

    def start(self, prompt: str, steps: Sequence[Step]) -> Job:
        """A chain to be scored; what is known of it is not computed again.

        Raises InputError for an empty step, and for a chain without one where the model values no bare prompts.
        """
        if not steps and not self.scorer.model.prompt_slot:
            raise InputError("there is no step to score")
        keys: list[Hashable] = [prompt, *map(key_of, steps)]
        nodes = [self._nothing]
        while len(nodes) <= len(keys) and (known := nodes[-1].following.get(keys[len(nodes) - 1])) is not None:
            nodes.append(known)
        job = Job(nodes)
        if len(nodes) <= len(keys):
            self._encode(job, prompt, steps)
        self._hold(job, nodes[-1].place)
        self._settle(job)
        return job

    def _encode(self, job: Job, prompt: str, steps: Sequence[Step]) -> None:
        """Tokens of what is not known of a chain."""
        encoder = self.scorer.encoder
        ids: list[int] = []
        written: list[bool] = []
        known = len(job.nodes) - 1
        if not known:
            ids = encoder.encode_prompt(prompt)
            written = [False] * len(ids)
            job.keys.append(prompt)
            job.ends.append(len(ids))
        for index in range(max(known - 1, 0), len(steps)):
            if job.truncated:
                # An empty step is an error wherever it is.
                if is_empty(steps[index]):
                    encoder.encode_step(steps[index], index)
                continue
            block = encoder.encode_step(steps[index], index)
            if job.first + len(ids) + len(block) > encoder.config.max_length:
                job.truncated = len(steps) - index
                continue
            ids += [token for token, _ in block]
            written += [own for _, own in block]
            job.keys.append(key_of(steps[index]))
            job.ends.append(job.first + len(ids))
        if job.truncated == len(steps) and steps:
            # A prompt that leaves no room for its first step is not read.
            ids, written = [], []
            job.keys, job.ends = [], []
            job.score = ChainScore((), (), job.truncated)
        job.ids, job.written = np.array(ids, dtype=np.int64), np.array(written, dtype=bool)

    def _hold(self, job: Job, place: Place) -> None:
        """What a chain has come to stays until it is left."""
        place.branch.held += 1
        self.pool.tree.use(place.branch)
        job.place = place

    def leave(self, job: Job) -> None:
        """Of a chain that nobody waits for any more, or that has its score, nothing needs to stay."""
        job.place.branch.held -= 1
        self.pool.tree.shrink()

    def _settle(self, job: Job) -> None:
        """What others computed of the chain meanwhile counts."""
        place = job.place
        while job.keys and (known := job.nodes[-1].following.get(job.keys[0])) is not None:
            self._pass(job, known)
            place = max(place, known.place, key=lambda one: one.depth)
        place = self.pool.tree.find(place, job.ids[place.depth - job.first :])
        if place != job.place:
            self._move(job, place)
        job.left = job.length - place.depth

    def _move(self, job: Job, place: Place) -> None:
        job.place.branch.held -= 1
        self._hold(job, place)

    @staticmethod
    def _pass(job: Job, node: Node) -> None:
        """The next beginning of a chain has its scores."""
        job.nodes.append(node)
        del job.keys[0], job.ends[0]

    def advance(self, jobs: Sequence[Job], tokens: int = AT_ONCE) -> int:
        """One pass over the next tokens of jobs, in order, up to so many; jobs that begin alike follow one another in
        later passes. Those that come to their end get their scores.

        Returns how many tokens were computed.

        Raises RuntimeError as the model does; nothing is lost then.
        """
        running: list[tuple[Job, NDArray[np.int64]]] = []
        taken: set[tuple[int, int, int]] = set()
        ready: list[Job] = []
        room = tokens
        for job in jobs:
            if job.score is not None:
                continue
            self._settle(job)
            if not job.left:
                ready.append(job)
                continue
            new = job.rest()[:room]
            if len(new):
                start = (id(job.place.branch), job.place.count, int(new[0]))
                if start not in taken:
                    taken.add(start)
                    running.append((job, new))
                    room -= len(new)
        if running:
            places = self.pool.extend([job.place for job, _ in running], [new for _, new in running])
            for (job, new), place in zip(running, places, strict=True):
                self._move(job, place)
                job.computed += len(new)
                job.left -= len(new)
        touched = [*ready, *(job for job, _ in running)]
        self._judge(touched)
        self._finish([job for job in touched if not job.left])
        self.pool.tree.shrink()
        return tokens - room

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[Job]:
        """Jobs that have come to their end, in order, whose scores are of (prompt, steps) pairs."""
        jobs = [self.start(prompt, steps) for prompt, steps in chains]
        while any(job.score is None for job in jobs):
            self.advance(jobs)
        for job in jobs:
            self.leave(job)
        return jobs

    def _judge(self, jobs: Sequence[Job]) -> None:
        """Scores of the beginnings whose tokens are there now."""
        parts = [_Part(job, reached) for job in jobs
                 if (reached := [end for end in job.ends if end <= job.place.depth])]
        if not parts:
            return
        model = self.scorer.model
        with torch.inference_mode():
            hidden = torch.cat([state for part in parts for state in part.states])
            columns = np.cumsum([0, *(len(part.ids) for part in parts)])
            slots = np.cumsum([0, *(len(part.ends) for part in parts)])
            # Numbers of slots and columns in all parts together; -1 stays.
            step_of, owner = (torch.from_numpy(np.concatenate(
                [np.where(of < 0, -1, of + first) for of, first in zip(each, slots, strict=False)])).to(hidden.device)
                for each in ([part.written for part in parts], [part.owner for part in parts]))
            at = torch.from_numpy(np.concatenate(
                [part.ends + first for part, first in zip(parts, columns, strict=False)])).to(hidden.device)
            count = len(at)
            # What belongs to no slot goes behind all of them.
            sums = hidden.new_zeros(count + 1, hidden.shape[1], dtype=torch.float32).index_add_(
                0, owner.where(owner >= 0, count), hidden.float())[:count]
            step = chain = lowest = None
            if model.surprisal is not None:
                ids = torch.from_numpy(np.concatenate([part.ids for part in parts])).to(hidden.device)
                own = model.surprisal.of_steps(hidden[None], ChainBatch(ids[None], step_of[None], at[None]))[0]
                features = own.cpu().numpy()
                lowest = np.concatenate([part.lowest(features[first:])
                                         for part, first in zip(parts, slots, strict=False)])
                least, before = torch.from_numpy(lowest).to(own), self._before(parts).to(own.device)
                step, chain = (model.surprisal.with_history(one, least, before) for one in (own, least))
            reading = model.judge_ends(*(None if one is None else one[None] for one in (hidden[at], step, chain)), sums)
            [said] = self.scorer.slots(reading, [count], [self._texts(parts)] if model.arithmetic else None)
        totals = sums.cpu().numpy()
        for part, first in zip(parts, slots.tolist(), strict=False):
            job, news = part.job, self._news(part)
            for slot, end in enumerate(part.reached, first):
                before = job.nodes[-1].said
                self._pass(job, grow(job.nodes[-1], job.keys[0], job.place.upto(end), Said(
                    said[slot], None if lowest is None else lowest[slot],
                    totals[slot] + before.total if before else totals[slot], *news[slot - first])))

    @staticmethod
    def _before(parts: Sequence[_Part]) -> torch.Tensor:
        """Of each slot how many steps come before the one that ends there; -1 where the prompt does."""
        # Nothing and the prompt are beginnings too.
        return torch.cat([torch.arange(len(part.reached)) + len(part.job.nodes) - 2 for part in parts])

    def _texts(self, parts: Sequence[_Part]) -> list[str]:
        """Of each slot of parts of chains the step that ends there, nothing where the prompt does."""
        found = []
        for part in parts:
            # Nothing is known of a chain before its prompt is.
            prompts = int(len(part.job.nodes) == 1)
            pieces = part.pieces()[prompts:]
            found += [""] * prompts + [self.scorer.encoder.turn(piece[:-1].tolist()).text for piece in pieces]
        return found

    def _news(self, part: _Part) -> list[tuple[News, int]]:
        """Of each slot what of its beginning's tokens is new, and how many the tokenizer cannot read."""
        pieces = part.pieces()
        last = part.job.nodes[-1]
        domain, unknown = self.scorer.domain, self.scorer.encoder.tokenizer.unk_token_id
        news = domain.news(pieces, last.news) if domain else [NOTHING] * len(pieces)
        missed = itertools.accumulate(
            (0 if unknown is None else int((piece == unknown).sum()) for piece in pieces),
            initial=last.said.unknown if last.said else 0)
        return list(zip(news, itertools.islice(missed, 1, None), strict=True))

    def _finish(self, jobs: Sequence[Job]) -> None:
        """Scores of chains all of whose beginnings have theirs."""
        if not jobs:
            return
        scorer = self.scorer
        last = [job.nodes[-1] for job in jobs]
        doubts: Sequence[str | None]
        if scorer.domain:
            states = np.stack([node.said.total / node.place.depth for node in last])
            doubts = scorer.domain.doubts_of([node.news for node in last], states)
        else:
            doubts = [unreadable(node.said.unknown, node.place.depth) for node in last]
        for job, doubt in zip(jobs, doubts, strict=True):
            slots = [node.said.slot for node in job.nodes[1 if scorer.model.prompt_slot else 2 :]]
            job.score = scorer.chain_score(slots, job.truncated, doubt)


class _Part:
    """What of a chain gets its scores now: some of its tokens, and the beginnings that end with them.

    Attributes:
        begin: tokens of the chain before those that end with a beginning.
        reached: where in the chain the beginnings end.
        states: hidden states of its columns: the last token of the beginning before, if there is one, which says how
            expected the next is, and those of the tokens up to the last end.
        ids: tokens, (columns,).
        written: the slot, from 0, of each token that the policy wrote in a step, -1 of others, (columns,).
        owner: the slot that each token leads to, -1 of the token before, (columns,).
        ends: columns of the slots, (slots,).
    """

    def __init__(self, job: Job, reached: Sequence[int]) -> None:
        self.job = job
        self.reached = reached
        self.begin = job.nodes[-1].place.depth
        extra = min(self.begin, 1)
        ids, written = job.part(self.begin, reached[-1])
        left, self.states = extra + len(ids), []
        for state in job.place.hidden(self.begin - extra):
            self.states.append(state[:left])
            left -= len(self.states[-1])
        lengths = np.diff([self.begin, *reached])
        self.ids = np.concatenate([np.zeros(extra, dtype=np.int64), ids])
        self.owner = np.concatenate([np.full(extra, -1), np.repeat(np.arange(len(reached)), lengths)])
        self.written = np.where(np.concatenate([np.zeros(extra, dtype=bool), written]), self.owner, -1)
        self.ends = np.array(reached) - self.begin + extra - 1

    def pieces(self) -> list[NDArray[np.int64]]:
        """Tokens that each of the beginnings has more than the one before."""
        return [self.job.part(start, end)[0] for start, end in itertools.pairwise([self.begin, *self.reached])]

    def lowest(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of each surprisal feature the lowest of the chain's steps up to each slot, from those of the slots on."""
        own = features[: len(self.ends)]
        before = self.job.nodes[-1].said
        if before is None:
            # A prompt has no surprisal that a step could fall below: it is 0, and log-probabilities are not above.
            return np.minimum.accumulate(own)
        return np.minimum(np.minimum.accumulate(own), before.lowest)

"""Milliseconds to score a new step of a chain whose beginning is known, alone and with many sessions at one time."""

from __future__ import annotations

import random
import statistics
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Job

CONTEXT, SESSIONS = 2048, 64
# Tokens of a new step; the bars are of the first.
LENGTHS = (30, 16, 8)
ROUNDS = 12


def work(job: Job) -> None:
    """Fills sessions and times steps: the pass alone, then a call of the scoring session."""
    from transformers import AutoModelForTokenClassification

    from prm_core.models.static.states import StaticStates
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.reward import ProcessRewardModel
    from prm_core.scoring.scorer import RewardScorer

    result, device = job.result, job.device
    context, sessions, rounds = (60, 4, 2) if job.mini else (CONTEXT, SESSIONS, ROUNDS)
    config = measure.configuration("mini" if job.mini else "7b")
    config.num_labels = 2
    copied, multiplied = measure.memory_rate(device, job.mini), measure.product_rate(device, job.mini)
    weights = measure.layer_weights(config)
    result.note(shape=config.to_dict(), context=context, sessions=sessions, dtype=job.dtype, weights=weights,
                bytes_per_second=copied, operations_per_second=multiplied)
    network = measure.build(AutoModelForTokenClassification, config, device, job.dtype)
    room = context + (rounds + 4) * max(LENGTHS) + 8
    encoder = measure.encoder(config.vocab_size, room)
    model = ProcessRewardModel(network, asdict(encoder.config))
    scorer = RewardScorer(model, encoder, Calibrator("identity", 0), "random", sessions)
    measure.sturdy(job, model.backbone)
    result.note(built_after=job.budget.spent())
    rng = random.Random(0)
    size = config.vocab_size

    def ids(count: int) -> list[int]:
        return [rng.randrange(3, size) for _ in range(count - 1)] + [measure.STEP]

    # The mean context over the rounds is `context`.
    start = context - rounds * LENGTHS[0] // 2
    texts = [ids(start) for _ in range(sessions)]
    states = StaticStates(model.backbone, room, room * (sessions + 1))
    filled = measure.timed(lambda: states.read(texts[:1]), device)
    result.add("a text of the context read for the first time", 1e3 * filled, "ms", tokens=start)
    states.read(texts)
    floors = {}
    for length in LENGTHS:
        floors[length] = (2 * weights / copied * 1e3, 2 * weights * length * sessions / multiplied * 1e3 / sessions)
    for length in LENGTHS:
        for count in (1, sessions):
            if job.budget.left() < 10:
                result.note(stopped=f"before steps of {length} tokens with {count} sessions")
                return
            times = _steps(model, states, texts, count, length, rounds, ids, device)
            bar = ({1: "<= 6", sessions: "<= 0.3"}[count] if length == LENGTHS[0] else "")
            who = "alone" if count == 1 else f"{count} sessions together"
            result.add(f"a step of {length} tokens, {who}", [1e3 * one / count for one in times], "ms a step", bar,
                       floor=floors[length][count > 1], tokens=length, sessions=count,
                       share_of_products=2 * weights * length * count / statistics.median(times) / multiplied)
    # What comes last may fail: the figures above are written.
    _session(job, scorer, context, rounds, rng, size, sessions)
    _whole(job, model, texts[0])
    _agrees(job, model, texts[0], states, ids)
    _graph_alone(job, states, texts, sessions)


def _steps(
    model: Any, states: Any, texts: list[list[int]], count: int, length: int, rounds: int, ids: Any, device: str
) -> list[float]:
    """Seconds of each round: `count` texts go on by a step, which is scored."""
    times = []
    # The texts are as long again for the next number of tokens or sessions.
    own = [list(text) for text in texts[:count]]
    for number in range(rounds + 1):
        own = [text + ids(length) for text in own]
        scores: list[float] = []

        def step(own: list[list[int]] = own, scores: list[float] = scores) -> None:
            with torch.inference_mode():
                ends = torch.stack([state[-1] for state, _ in states.read(own)])
                wrong, right = model.head(ends).float().unbind(-1)
                scores += torch.sigmoid(right - wrong).tolist()

        found = measure.timed(step, device)
        if number:
            times.append(found)
    return times


def _agrees(job: Job, model: Any, text: list[int], states: Any, ids: Any) -> None:
    """How far states that came step by step are from those of a whole pass, of their own size."""
    with torch.inference_mode():
        for _ in range(4):
            text = [*text, *ids(LENGTHS[0])]
            states.read([text])
        found = states.read([text])[0][0].float()
        whole = model.backbone(
            input_ids=torch.tensor([text], device=job.device), use_cache=False).last_hidden_state[0].float()
        apart = ((found - whole).norm() / whole.norm()).item()
    job.result.add("states step by step against a whole pass, relative", apart, "")


@torch.inference_mode()
def _graph_alone(job: Job, states: Any, texts: list[list[int]], sessions: int) -> None:
    """The pass without what is around it."""
    for count in (1, sessions):
        key = next((key for key in states._graphs if key[0] >= count and key[1] >= LENGTHS[0]), None)
        if key is None:
            continue
        rows, tokens = key
        given = (torch.full((rows, tokens), 5, device=job.device),
                 torch.arange(rows, device=job.device).clamp(max=states.slots - 1),
                 torch.full((rows,), len(texts[0]), device=job.device))
        times = [measure.timed(lambda given=given, key=key: states._graphs[key](*given), job.device) for _ in range(8)]
        job.result.add(f"the pass alone, {rows} rows of {tokens} tokens", [1e3 * one / count for one in times],
                       "ms a step", rows=rows, tokens=tokens)


def _session(
    job: Job, scorer: Any, context: int, rounds: int, rng: random.Random, size: int, sessions: int
) -> None:
    """Calls of the scoring session, texts in, scores out."""
    from prm_core.scoring import session as module
    from prm_core.scoring.session import ScoringSession
    from prm_core.types import Step

    if job.budget.left() < 15:
        job.result.note(stopped="before the scoring session")
        return
    if job.mini:
        module.GRAPHED = ("cpu", "cuda")
    session = ScoringSession(scorer, scorer.encoder)
    length = LENGTHS[0]

    def step() -> Step:
        return Step(measure.words(rng, length - 1, size))

    for count in (1, sessions):
        chains = [(measure.words(rng, 20, size), [step() for _ in range((context - 21) // length - rounds // 2)])
                  for _ in range(count)]
        session.score(chains)
        times, computed = [], 0.0
        for number in range(rounds + 1):
            chains = [(prompt, [*steps, step()]) for prompt, steps in chains]
            found: list[Any] = []

            def ask(chains: list[Any] = chains, found: list[Any] = found) -> None:
                found += session.score(chains)

            seconds = measure.timed(ask, job.device)
            computed = statistics.mean(one.computed for one in found)
            if number:
                times.append(seconds)
        job.result.add(f"ScoringSession.score, a step of {length} tokens, {count} sessions",
                       [1e3 * one / count for one in times], "ms a step", tokens_computed=computed)


def _whole(job: Job, model: Any, text: list[int]) -> None:
    """What each step costs where nothing is kept."""
    given = torch.tensor([text], device=job.device)

    def whole() -> None:
        with torch.inference_mode():
            model.backbone(input_ids=given, use_cache=False)

    whole()
    job.result.add("the whole chain again", [1e3 * measure.timed(whole, job.device) for _ in range(3)], "ms a step",
                   tokens=len(text))

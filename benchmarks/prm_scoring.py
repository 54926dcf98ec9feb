"""Scoring a trajectory of twelve steps: one pass, against the guide's server, which makes two for each step."""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import prm_chains
from benchmarks.report import Bar
from prm_core.domains import arithmetic
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.loading import load_pretrained, load_tokenizer, model_version
from prm_core.scoring.calibration import Calibrator

if TYPE_CHECKING:
    from prm_core.scoring.scorer import RewardScorer

STEPS = 12
FASTER = 15.0
GUIDE = "guide's server"
# Whether the score has the surprisal's term, which the models of the shipped profiles have and which needs vocabulary
# logits.
OURS = {"one pass": False, "one pass with surprisal": True}
Trajectory = tuple[str, tuple[str, ...]]


class GuideServer:
    """How the server of the guide reads a trajectory (`score_step`, `analyze_trajectory`); its cache never hits here.

    For each step it tokenises the text so far, runs the whole causal language model, throws that away, runs it again
    and reads its linear head at the last position. Like the guide's it keeps all hidden states and makes vocabulary
    logits in every pass. Its third look at the text, `_estimate_confidence`, is not written out there: none here.

    Args:
        path: a causal LM.
        dtype, device: as `load_pretrained`.
    """

    def __init__(self, path: str, dtype: str, device: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.tokenizer = load_tokenizer(path)
        self.model = load_pretrained(AutoModelForCausalLM, path, dtype=dtype, device=device)
        self.head = torch.nn.Linear(self.model.config.hidden_size, 1).to(self.model.device, self.model.dtype)

    def score(self, prompt: str, steps: Sequence[str]) -> list[float]:
        """The score of each step."""
        return [self.score_step("\n".join([prompt, *steps[:index]]), step) for index, step in enumerate(steps)]

    def score_step(self, context: str, step: str) -> float:
        """The score of a step after the text before it."""
        import torch

        with torch.no_grad():
            inputs = self.tokenizer(f"{context}\n{step}", return_tensors="pt").to(self.model.device)
            self._hidden(inputs)
            last = self._hidden(inputs)[0, inputs["input_ids"].shape[1] - 1]
            return float(self.head(last).clamp(0, 1))

    def _hidden(self, inputs: Any) -> Any:
        return self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
                          output_hidden_states=True).hidden_states[-1]


def measure(given: argparse.Namespace) -> tuple[list[Bar], dict[str, Any]]:
    """The bar on SmolLM2 and on the embedded model, as far as they are given."""
    import torch

    torch.set_num_threads(given.threads)
    runs = 5 if given.quick else max(15, 5 * given.repeats)
    models: dict[str, tuple[Path, Callable[[Encoder], list[Trajectory]]]] = {}
    if given.base is not None and given.data is not None:
        models["SmolLM2"] = given.base, lambda encoder: _of_prm800k(given.data, encoder, runs + 1, given.seed)
    if given.workspace is not None:
        models["embedded"] = (given.workspace / "artifacts/warmup/models/backbone",
                              lambda encoder: _of_domain(encoder, runs + 1, given.seed))
    if not models:
        raise InputError("scoring needs --base and --data, or --workspace, or all three")
    bars, more = [], {}
    for name, (path, draw) in models.items():
        figures = _compare(str(path), draw, given)
        for way in OURS:
            ratios = [theirs / mine for mine, theirs in zip(figures["seconds"][way], figures["seconds"][GUIDE],
                                                            strict=True)]
            median = statistics.median(ratios)
            bars.append(Bar(f"{STEPS} steps, {GUIDE} / {way}: {name}", median, min(ratios), max(ratios), ">= 15",
                            median >= FASTER))
        more[name] = figures | {"model": model_version(str(path))}
    return bars, {"scoring": more, "runs": runs, "threads": given.threads}


def _compare(path: str, draw: Callable[[Encoder], list[Trajectory]], given: argparse.Namespace) -> dict[str, Any]:
    """Seconds a trajectory of each way, each trajectory scored once by each, in turn; the first of all is not timed."""
    scorers = {way: _scorer(path, surprisal, given.device) for way, surprisal in OURS.items()}
    encoder = scorers[next(iter(OURS))].encoder
    trajectories = draw(encoder)
    server = GuideServer(path, "auto", given.device)
    ways: dict[str, Callable[[str, Sequence[str]], object]] = {
        **{way: lambda prompt, steps, scorer=scorer: scorer.score([(prompt, steps)])
           for way, scorer in scorers.items()},
        GUIDE: server.score,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for prompt, steps in trajectories:
        for way, score in ways.items():
            seconds[way].append(_timed(score, prompt, steps, given.device))
    return {"seconds": {way: times[1:] for way, times in seconds.items()},
            "median_seconds": {way: statistics.median(times[1:]) for way, times in seconds.items()},
            "tokens": [len(encoder.encode(*trajectory).ids) for trajectory in trajectories[1:]],
            "dtype": str(server.model.dtype).removeprefix("torch.")}


def _timed(score: Callable[[str, Sequence[str]], object], prompt: str, steps: Sequence[str], device: str) -> float:
    start = time.perf_counter()
    score(prompt, steps)
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter() - start


def _scorer(path: str, surprisal: bool, device: str) -> RewardScorer:
    """Our scorer on the same weights; what its head has learnt makes no difference to its time."""
    from prm_core.scoring.reward import ProcessRewardModel
    from prm_core.scoring.scorer import RewardScorer

    encoder = prm_chains.encoder_of(Path(path), 1024)
    model = ProcessRewardModel.from_backbone(path, surprisal=surprisal, encoder=dataclasses.asdict(encoder.config),
                                             dtype="auto", device=device)
    return RewardScorer(model, encoder, Calibrator("identity", 0), "benchmark", 1)


def _of_prm800k(data: Path, encoder: Encoder, count: int, seed: int) -> list[Trajectory]:
    """The first twelve steps of chains, each of another problem."""
    found = []
    for group in prm_chains.by_problem(prm_chains.read(data, "all"), seed):
        texts = next(((e.prompt, tuple(step.text for step in e.steps[:STEPS])) for e in group if len(e.steps) >= STEPS),
                     None)
        if texts is not None and not encoder.encode(*texts, may_be_empty=True).truncated_steps:
            found.append(texts)
        if len(found) == count:
            return found
    raise InputError(f"{data}: {len(found)} problems have a chain of {STEPS} steps that fits, {count} are needed")


def _of_domain(encoder: Encoder, count: int, seed: int) -> list[Trajectory]:
    """Twelve worked steps after a question; the domain's own chains are shorter, so several follow each other."""
    rng = random.Random(f"scoring/{seed}")
    problems = arithmetic.make_problems("benchmark-scoring", 10 * count, seed)
    found = []
    for problem in problems[:count]:
        steps: list[str] = []
        while len(steps) < STEPS:
            steps += rng.choice(problems).meta["solution"]
        found.append((problem.prompt, tuple(steps[:STEPS])))
    return found

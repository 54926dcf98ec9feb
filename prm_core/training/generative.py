"""Training a verifier that writes checks: it writes, a tool executes, and what agrees with the labels is learned.

Rejection sampling, one round: of each labelled step the language model writes several checks (`scoring/generative`),
and those are kept whose verdict by the tool is the label's. It then learns to write the steps that its kept checks bear
out and, in place of wrong ones, its kept checks. A check that the tool cannot execute says nothing against a label; of
a step with such a check it learns to give the label as the verdict.

Sources: Khalifa et al. 2025, "Process Reward Models That Think"; Yuan et al. 2023 (rejection sampling fine-tuning).
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prm_core.config import Config
from prm_core.config.training import GenerativeConfig
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.loading import load_encoder, load_pretrained, pick_device
from prm_core.models.padding import pad
from prm_core.scoring.calibration import Calibrator, fit_calibrator
from prm_core.scoring.generative.checks import Check, verdict_turn
from prm_core.scoring.generative.scorer import GenerativeScorer, Writing
from prm_core.training.batches import batches_from, bucketed_batches
from prm_core.training.examples import Example, split_by_problem
from prm_core.training.warmup import solution_loss
from prm_core.types import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
# Verdicts "right" learned for each "wrong", which are far fewer.
RIGHT_PER_WRONG = 3
WARMUP_UPDATES = 10


@dataclass(frozen=True, slots=True)
class Text:
    """Token ids, and which of them are learned."""

    ids: tuple[int, ...]
    learned: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """What rejection sampling left to learn from.

    Attributes:
        writing: chains whose sound steps, or last, are to be written.
        verdicts: chains that end in a verdict of its own.
        counts: checks written and kept, and those the tool could not execute.
    """

    writing: list[Text]
    verdicts: list[Text]
    counts: dict[str, float]


@dataclass(frozen=True, slots=True)
class TrainedVerifier:
    """What training gives.

    Attributes:
        scorer: calibrated on held-out problems.
        history: a record an epoch.
        counts: chains, checks written and kept.
        held_out: of the held-out problems, (raw score, target) of each step.
    """

    scorer: GenerativeScorer
    history: list[dict[str, Any]]
    counts: dict[str, float]
    held_out: list[tuple[float, float]]


def train_verifier(
    backbone: str, examples: Sequence[Example], config: Config, *, report: Callable[[dict[str, float], int], None]
) -> TrainedVerifier:
    """Trains a verifier on a causal LM.

    Args:
        backbone: folder or hub id.
        examples: of kind process, of at least two problems; a target above one half is taken for right.
        config: its sections seed, models, encoder, calibrate, serve and train_prm.
        report: gets figures and the epoch they are of.

    Raises InputError where there is nothing to learn from.
    """
    from transformers import AutoModelForCausalLM

    settings = config.train_prm.generative
    if len({example.problem_id for example in examples}) < 2:
        raise InputError("the training set has chains of one problem; training and dev need one each: give more")
    train, dev = split_by_problem(examples, config.train_prm.dev_share, config.seed)
    # Mixed precision is not done here: what is rounded to bfloat16 cannot take small steps.
    model = load_pretrained(AutoModelForCausalLM, backbone, dtype="float32", device=config.models.device).eval()
    model.config._name_or_path = ""
    encoder = load_encoder(backbone, model, config.encoder)
    writing = Writing(settings.samples, settings.temperature, settings.max_new_tokens)
    scorer = GenerativeScorer(model, encoder, Calibrator("identity", 0), "", config.serve.batch_size, writing)
    kept = keep(scorer, train, config.seed)
    log.info("verifier: %s", ", ".join(f"{value:g} {name}" for name, value in kept.counts.items()))
    if not kept.writing:
        raise InputError(f"no check of the {len(train)} chains agrees with a label ({kept.counts}); give more labelled "
                         "chains, or a language model that solves the problems")
    history = _fit(model, encoder, kept, settings, config.seed, report)
    scorer.writing = replace(writing, votes=settings.votes)
    scorer.calibrator, held_out = _calibrate(scorer, dev, config)
    counts = {"chains": len(train), "dev_chains": len(dev), **kept.counts}
    return TrainedVerifier(scorer, history, counts, held_out)


def keep(scorer: GenerativeScorer, examples: Sequence[Example], seed: int) -> Kept:
    """What a verifier may learn of labelled chains: of its checks, those whose verdicts are the labels'."""
    rng, limit = random.Random(f"verifier/{seed}"), scorer.encoder.config.max_length
    writing: list[Text] = []
    verdicts: dict[bool, list[Text]] = {True: [], False: []}
    counts = Counter(dict.fromkeys(("written", "kept", "silent"), 0))
    written = scorer.checks_of([(example.prompt, example.steps) for example in examples])
    for example, checks in zip(examples, written, strict=True):
        borne_out = []
        for index, (found, target) in enumerate(zip(checks, example.targets, strict=False)):
            if math.isnan(target):
                continue
            right, steps = target > 0.5, example.steps[: index + 1]
            kept = [check for check in found if check.says is right]
            silent = [check for check in found if check.says is None]
            counts.update(written=len(found), kept=len(kept), silent=len(silent))
            if silent:
                verdicts[right] += _verdict(scorer.encoder, example.prompt, steps, rng.choice(silent), right)
            if right and kept:
                borne_out.append(index)
            elif not right:
                writing += [_written(scorer.encoder, example.prompt, (*steps[:-1], Step(text)), [index])
                            for text in sorted({check.step for check in kept if check.step})]
        if borne_out:
            writing.append(_written(scorer.encoder, example.prompt, example.steps[: borne_out[-1] + 1], borne_out))
    rng.shuffle(verdicts[True])
    balanced = [*verdicts[True][: RIGHT_PER_WRONG * max(len(verdicts[False]), 1)], *verdicts[False]]
    return Kept(*([text for text in part if len(text.ids) <= limit and text.learned] for part in (writing, balanced)),
                dict(counts))


def _written(encoder: Encoder, prompt: str, steps: Sequence[Step], learned: Sequence[int]) -> Text:
    """A chain of which these steps are learned."""
    chain = encoder.encode(prompt, steps, may_be_empty=True)
    starts = [chain.prompt_length, *(end + 1 for end in chain.step_ends)]
    places = [place for index in learned if index < len(chain.step_ends)
              for place in range(starts[index], chain.step_ends[index] + 1)]
    return Text(tuple(chain.ids), tuple(places))


def _verdict(encoder: Encoder, prompt: str, steps: Sequence[Step], check: Check, right: bool) -> Iterator[Text]:
    """A chain, a check of its last step and the verdict, of which the verdict is learned; nothing where it is too long.
    """
    chain = encoder.encode(prompt, (*steps, check.turn, verdict_turn(right)), may_be_empty=True)
    if not chain.truncated_steps:
        # The boundary ends the verdict.
        yield Text(tuple(chain.ids), (len(chain.ids) - 2,))


def _fit(
    model: PreTrainedModel, encoder: Encoder, kept: Kept, settings: GenerativeConfig, seed: int,
    report: Callable[[dict[str, float], int], None],
) -> list[dict[str, Any]]:
    """Trains on what was kept: in each update, chains to write and, where there are such, verdicts to give."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    from prm_core.platform.progress import track

    parts = {name: texts for name, texts in (("writing", kept.writing), ("verdict", kept.verdicts)) if texts}
    lengths = {name: [len(text.ids) for text in texts] for name, texts in parts.items()}
    epoch = len(bucketed_batches(lengths["writing"], settings.batch_size, seed, 0))
    updates = epoch * settings.epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, min(WARMUP_UPDATES, updates // 2), updates)
    orders = {name: batches_from(of, settings.batch_size, seed, start=0, stop=updates) for name, of in lengths.items()}
    history: list[dict[str, Any]] = []
    sums: Counter[str] = Counter()
    model.train()
    for update in track(range(1, updates + 1), "verifier", unit="update"):
        losses = {name: _loss(model, encoder, [texts[row] for row in next(orders[name])[1]])
                  for name, texts in parts.items()}
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise InputError(f"verifier: the loss is {loss.item()} at update {update}; lower "
                             "train_prm.generative.learning_rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        sums.update({name: one.item() for name, one in losses.items()})
        if update % epoch == 0:
            history.append({"epoch": update // epoch, **{f"{name}_loss": sums[name] / epoch for name in losses}})
            report({f"verifier/{name}": value for name, value in history[-1].items() if name != "epoch"}, update)
            sums.clear()
    model.eval()
    return history


def _loss(model: PreTrainedModel, encoder: Encoder, texts: Sequence[Text]) -> Any:
    """Mean cross-entropy of the learned tokens."""
    import torch

    device = pick_device(str(model.device))
    ids = pad([text.ids for text in texts], encoder.pad_id).to(device)
    learned = torch.zeros_like(ids, dtype=torch.bool)
    for row, text in enumerate(texts):
        learned[row, list(text.learned)] = True
    return solution_loss(model, ids, learned) / sum(len(text.learned) for text in texts)


def _calibrate(
    scorer: GenerativeScorer, dev: Sequence[Example], config: Config
) -> tuple[Calibrator, list[tuple[float, float]]]:
    """The map from the mean of the verdicts to a probability, fitted on the targets of held-out problems; and those.
    """
    scores = scorer.score([(example.prompt, example.steps) for example in dev])
    pairs = [(raw, target) for example, score in zip(dev, scores, strict=True)
             for raw, target in zip(score.raw_scores, example.targets, strict=False) if not math.isnan(target)]
    fitted = fit_calibrator([raw for raw, _ in pairs], [target for _, target in pairs], config.calibrate.method,
                            config.calibrate.min_labels)
    return fitted, pairs

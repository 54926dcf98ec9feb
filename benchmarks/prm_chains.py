"""Labelled chains for the reward-model benchmark: seeded samples of PRM800K, the same for us and for the peer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.formats import FORMATS
from prm_core.models.encoder import Encoder
from prm_core.models.loading import load_tokenizer
from prm_core.training.examples import IGNORED, Example
from prm_core.training.reward.labelled import examples_of
from prm_core.types import Step

FORMAT = "prm800k_flat"
SEPARATOR = "\n"
# What the peer's trainer ignores.
NO_LABEL = -100


@dataclass(frozen=True, slots=True)
class Chains:
    """Chains that fit the context.

    Attributes:
        sample: what is trained on, one by one.
        trees: all chains of the sample's problems.
        dev: of other problems, one a problem.
    """

    sample: list[Example]
    trees: list[Example]
    dev: list[Example]


def read(path: Path, labels: str) -> list[Example]:
    """The chains of a file with human labels, steps after the first error unlabelled.

    Args:
        path: PRM800K by rows (.parquet or JSON lines).
        labels: `all` gives every chain the labels of all its steps; `once` labels a step that several chains share in
            the first of them only.
    """
    chains = FORMATS[FORMAT].read(path)
    if labels == "all":
        # What is not known to come from one tree counts as chains of their own.
        chains = (replace(chain, meta={}) for chain in chains)
    found = examples_of(chains, "process", mask_after_error=True)
    return [example for example in found if any(target == target for target in example.targets)]


def encoder_of(base: Path, max_length: int) -> Encoder:
    """Our encoder on the base model's tokenizer."""
    return Encoder(load_tokenizer(str(base)), EncoderConfig(separator=SEPARATOR, renderer=1, max_length=max_length))


def fits(encoder: Encoder, example: Example) -> bool:
    """Whether the whole chain fits the context."""
    return not encoder.encode(example.prompt, example.steps, may_be_empty=True).truncated_steps


def by_problem(examples: Iterable[Example], seed: int) -> list[list[Example]]:
    """Chains grouped by problem, both in an order drawn with the seed."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.problem_id, []).append(example)
    rng = random.Random(f"chains/{seed}")
    problems = [groups[name] for name in sorted(groups)]
    rng.shuffle(problems)
    for group in problems:
        rng.shuffle(group)
    return problems


def draw(
    examples: Sequence[Example], encoder: Encoder, *, chains: int, problems: int, dev: int, seed: int
) -> Chains:
    """A sample of `chains` chains among all those of `problems` problems, and a chain of each of `dev` others.

    Raises InputError when the file has too few that fit the context.
    """
    whole: list[list[Example]] = []
    for group in by_problem(examples, seed):
        if len(whole) == dev + problems:
            break
        kept = [example for example in group if fits(encoder, example)]
        if kept:
            whole.append(kept)
    train = [example for group in whole[dev:] for example in group]
    if len(whole) < dev + problems or len(train) < chains:
        raise InputError(f"--data has {len(whole)} problems with chains of up to {encoder.config.max_length} tokens, "
                         f"{len(train)} chains to train on; asked for {dev} + {problems} problems and {chains} chains: "
                         "lower --chains or raise --max-length")
    sample = random.Random(f"sample/{seed}").sample(train, chains)
    return Chains(sample, train, [group[0] for group in whole[:dev]])


def grouped(examples: Sequence[Example], encoder: Encoder, size: int, seed: int) -> list[Example]:
    """The chains in batches of like length, the batches in an order drawn with the seed."""
    order = sorted(examples, key=lambda example: len(encoder.encode(example.prompt, example.steps).ids))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    random.Random(f"grouped/{seed}").shuffle(batches)
    return [example for batch in batches for example in batch]


def to_row(example: Example) -> dict[str, Any]:
    """A chain in the peer's format, stepwise supervision; a step without a label has -100."""
    labels = [NO_LABEL if target != target else round(target) for target in example.targets]
    return {"prompt": example.prompt, "completions": [step.text for step in example.steps], "labels": labels}


def from_row(row: dict[str, Any]) -> Example:
    """The chain of a row."""
    targets = tuple(IGNORED if label == NO_LABEL else float(label) for label in row["labels"])
    return Example(row["prompt"], row["prompt"], tuple(map(Step, row["completions"])), targets)


def write_rows(path: Path, examples: Iterable[Example]) -> str:
    """JSON lines, one chain each. Returns the path for a job."""
    path.write_text("".join(f"{json.dumps(to_row(example))}\n" for example in examples))
    return str(path)


def read_rows(path: str) -> Iterator[Example]:
    """The chains of a file that `write_rows` wrote."""
    for line in Path(path).read_text().splitlines():
        yield from_row(json.loads(line))

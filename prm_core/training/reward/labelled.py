"""Training examples from labelled chains of any format (`prm_core/formats`); from the chain's own: `examples.py`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from prm_core.errors import InputError
from prm_core.formats import LabelledChain, labelled_once
from prm_core.training.examples import IGNORED, Example


def examples_of(chains: Iterable[LabelledChain], kind: str, *, mask_after_error: bool) -> list[Example]:
    """Examples of labelled chains of any format; a problem is known by its prompt.

    Args:
        chains: as a format reads them; a step that several of them share is a target once.
        kind: `process` takes a target from each label; `outcome` and `implicit` take the chain's outcome.
        mask_after_error: steps after a chain's first wrong one are no targets.

    Raises InputError when no chain has what the kind trains on.
    """
    if mask_after_error:
        chains = (dataclasses.replace(chain, labels=_masked(chain.labels)) for chain in chains)
    examples = []
    for chain in labelled_once(chains):
        found = chain.labels if kind == "process" else (chain.outcome,)
        targets = tuple(IGNORED if target is None else float(target) for target in found)
        examples.append(Example(chain.prompt, chain.asked, chain.steps, targets))
    if all(math.isnan(target) for example in examples for target in example.targets):
        what = "a labelled step" if kind == "process" else "an outcome"
        raise InputError(f"none of the {len(examples)} chains has {what}, which the {kind} model trains on; "
                         "give others")
    return examples


def _masked(labels: Sequence[float | None]) -> tuple[float | None, ...]:
    first = next((index for index, label in enumerate(labels) if label is not None and label < 0.5), len(labels))
    return tuple(label if index <= first else None for index, label in enumerate(labels))

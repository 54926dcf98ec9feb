"""Process reward models of other projects behind our `score(prompt, steps)`: TRL, Qwen2.5-Math-PRM, Math-Shepherd.

A family says how a chain becomes tokens (`encoders.py`) and how two logits are read where a step ends (`scorers.py`);
the rest is shared. Code that lies in a model's folder is never run, pickled weights are never read (`files.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from prm_core.errors import InputError
from prm_core.models.loading import load_tokenizer, local_folder, tensor_files
from prm_core.platform import store
from prm_core.scoring.foreign.encoders import VocabularyEncoder
from prm_core.scoring.foreign.scorers import (
    FOREIGN,
    QWEN_HEAD,
    BoundaryHeadScorer,
    ForeignScorer,
    TokenClassificationScorer,
    VocabularyScorer,
)
from prm_core.scoring.generative.scorer import GENERATIVE, load_generative
from prm_core.scoring.scorer import LoadedScorer, load_scorer
from prm_core.scoring.settings import is_reward_model, reward_settings

__all__ = ["FOREIGN", "BoundaryHeadScorer", "ForeignScorer", "TokenClassificationScorer", "VocabularyScorer",
           "detect_style", "load_any_scorer", "load_foreign"]

log = logging.getLogger(__name__)


def load_any_scorer(folder: str | Path, *, device: str = "auto", batch_size: int = 64) -> LoadedScorer:
    """The scorer of a reward model of this project or of another, by what its folder holds.

    Raises InputError as `load_scorer`, `load_generative` and `load_foreign` do.
    """
    load: Callable[..., LoadedScorer] = load_foreign
    if is_reward_model(str(folder)):
        load = load_generative if reward_settings(str(folder))["kind"] == GENERATIVE else load_scorer
    return load(folder, device=device, batch_size=batch_size)


def load_foreign(
    path: str | Path, style: str | None = None, *, device: str = "auto", batch_size: int = 64,
    separator: str | None = None,
) -> ForeignScorer:
    """The scorer of another project's process reward model.

    Args:
        path: Hugging Face folder, or a hub id this machine can reach.
        style: a name in `FOREIGN`; None reads it off `config.json`, the weights and the tokenizer.
        device: `auto` is CUDA where there is one.
        batch_size: chains a forward pass.
        separator: text of the step boundary where it is not the style's own.

    Raises:
        InputError: no such model, an architecture of no known style, pickled weights, a wrong number of labels, a
            separator or a sign that is not one token.
    """
    folder = local_folder(str(path))
    name = style or detect_style(folder)
    scorer = FOREIGN[name].load(folder, device=device, batch_size=batch_size, separator=separator)
    log.info("%s: a process reward model of style %s", path, name)
    return scorer


def detect_style(folder: str) -> str:
    """The name in `FOREIGN` of the style of a model folder. Raises InputError when it is none."""
    config = store.read_json(Path(folder) / "config.json")
    architectures = config.get("architectures") if isinstance(config, dict) else None
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else "unnamed"
    if architecture.endswith("ForProcessRewardModel") or QWEN_HEAD[0] in tensor_files(Path(folder)):
        return "qwen_prm"
    if architecture.endswith("ForTokenClassification"):
        return "trl"
    reason = f"it is of architecture {architecture}"
    if architecture.endswith("ForCausalLM"):
        try:
            VocabularyEncoder(load_tokenizer(folder), VocabularyScorer.separator, 16)
        except InputError as error:
            reason = f"it is a causal language model, and {error}"
        else:
            # Nothing in the folder tells it from a language model that never saw a step tag.
            log.warning("%s: a causal language model, taken for one of style math_shepherd", folder)
            return "math_shepherd"
    raise InputError(f"model {folder}: not a process reward model of a known style ({reason}); name one of "
                     "…ForTokenClassification (trl), Qwen2ForProcessRewardModel (qwen_prm) or …ForCausalLM with the "
                     "step tag 'ки' (math_shepherd)")

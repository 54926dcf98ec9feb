"""A scorer with a rule instead of a model, for the tests of what lies around the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.scoring.scorer import ChainScore
from prm_core.turns import heard, written
from prm_core.types import Step

CONTEXT = 400


class FakeScorer:
    """Scores a step 0.1 when it says "wrong", else 0.9; reads CONTEXT characters; refuses "refuse"."""

    encoder = SimpleNamespace(
        config=EncoderConfig(max_length=CONTEXT),
        encode=lambda prompt, steps: SimpleNamespace(ids=list(prompt + "".join(map(written, steps)))))
    kind = "process"
    version = "v1"

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, Sequence[Step]]]] = []
        self.inside = 0

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        self.inside += 1
        try:
            assert self.inside == 1, "two threads in the model at once"
            self.calls.append(list(chains))
            return [self._score(prompt, steps) for prompt, steps in chains]
        finally:
            self.inside -= 1

    def _score(self, prompt: str, steps: Sequence[Step]) -> ChainScore:
        used, kept = len(prompt), []
        for index, step in enumerate(steps):
            said = f"{written(step)} {heard(step)}"
            if "refuse" in said:
                raise InputError(f"step {index} is refused")
            if "crash" in said:
                raise RuntimeError("the model broke")
            used += len(written(step)) + len(heard(step))
            if used > CONTEXT:
                break
            kept.append(0.1 if "wrong" in said else 0.9)
        return ChainScore(tuple(kept), tuple(kept), len(steps) - len(kept))


def fake_model_folder(folder: Path) -> Path:
    """A folder that looks like a reward model's from outside."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        '{"prm": {"kind": "process", "surprisal": false, "encoder": {}, "precision": "float32"}}')
    (folder / "calibrator.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder

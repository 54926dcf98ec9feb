"""Models, training and formats where only PyTorch and transformers are installed.

As a test, everything else is hidden from a process of this environment; `make bare` runs the same in an environment
made for it. This file is also the script that either runs:

    python -m tests.test_bare_machine              makes an environment, runs the script in it, removes it
    python -m tests.test_bare_machine score        reads data, scores a chain; needs torch and transformers
    python -m tests.test_bare_machine train        trains, saves, loads and scores; needs transformers[torch]
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests import ROOT

ROOMS = ("types", "errors", "registry", "config", "maths", "domains", "models", "sampling", "scoring", "search",
         "training", "formats")
# What the chain is built from beside PyTorch and transformers, as imported.
HIDDEN = ("pydantic", "prefect", "mlflow", "dvc", "great_expectations", "pandas", "pyarrow", "sklearn", "scipy", "peft",
          "cachetools", "crowdkit", "matplotlib", "aiohttp", "nicegui", "sqlalchemy",
          "latex2sympy2_extended", "psutil", "fastapi", "starlette")
# accelerate comes with transformers[torch]; it needs psutil.
TRAINING = ("psutil",)


def import_rooms() -> int:
    """Imports every module of the rooms that must work here; returns how many."""
    names = []
    for room in ROOMS:
        module = importlib.import_module(f"prm_core.{room}")
        names.append(module.__name__)
        if hasattr(module, "__path__"):
            names += [found.name for found in pkgutil.walk_packages(module.__path__, f"{module.__name__}.")]
    for name in names:
        importlib.import_module(name)
    return len(names)


def base_model(folder: Path) -> list[dict[str, object]]:
    """Writes a tiny language model with its tokenizer; returns chains with labels, as TRL's rows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from prm_core.domains import arithmetic
    from prm_core.models.tokenizer import train_tokenizer

    problems = arithmetic.make_problems("train", 12, 0)
    tokenizer = train_tokenizer(t for p in problems for t in (p.prompt, *p.meta["solution"]))
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=256, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return [{"prompt": p.prompt, "completions": list(p.meta["solution"]), "labels": [True] * len(p.meta["solution"])}
            for p in problems]


def score(work: Path) -> None:
    """Formats in and out, an untrained reward model saved, loaded, and one chain scored."""
    import dataclasses

    from prm_core.config import EncoderConfig
    from prm_core.formats import FORMATS
    from prm_core.models.encoder import Encoder
    from prm_core.models.loading import load_tokenizer
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.reward import ProcessRewardModel
    from prm_core.scoring.scorer import load_scorer, save_reward_model

    rows = base_model(work / "base")
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    chains = list(FORMATS["trl"].read(work / "rows.jsonl"))
    assert FORMATS["math_shepherd"].write(work / "shepherd.jsonl", iter(chains)) == len(rows)
    encoding = EncoderConfig(max_length=256)
    model = ProcessRewardModel.from_backbone(str(work / "base"), surprisal=True, encoder=dataclasses.asdict(encoding),
                                             dtype="float32", device="cpu")
    encoder = Encoder(load_tokenizer(str(work / "base")), encoding)
    save_reward_model(model, encoder, Calibrator("identity", 0), work / "untrained")
    (found,) = load_scorer(work / "untrained", device="cpu").score([(chains[0].prompt, chains[0].steps)])
    # The embeddings' surprisal has no weight yet, and the head no opinion.
    assert found.step_scores == (0.5,) * len(chains[0].steps)


def train(work: Path) -> None:
    """A process model trained on labelled rows, saved, loaded and asked."""
    import dataclasses

    from prm_core import config as configuration
    from prm_core.formats import FORMATS
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.scorer import load_scorer, save_reward_model
    from prm_core.training.reward.labelled import examples_of
    from prm_core.training.reward.recipe import train_on

    rows = base_model(work / "base")
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = configuration.parse(configuration.resolve(ROOT / "params.yaml", "default"), "default")
    config = dataclasses.replace(
        config, models=dataclasses.replace(config.models, device="cpu"),
        train_prm=dataclasses.replace(config.train_prm, epochs=4, harmless_steps=0.0, row_tokens=128))
    examples = examples_of(FORMATS["trl"].read(work / "rows.jsonl"), "process", mask_after_error=True)
    trained = train_on("process", str(work / "base"), examples, [], config, work=work / "checkpoints",
                       report=lambda figures, update: None)
    save_reward_model(trained.model, trained.encoder, Calibrator("identity", 0), work / "trained")
    (found,) = load_scorer(work / "trained", device="cpu").score([(examples[0].prompt, examples[0].steps)])
    # All steps it saw were right.
    assert min(found.step_scores) > 0.5, found


class Blinkered:
    """A finder of modules that does not see some libraries."""

    def __init__(self, finder: Any, hidden: tuple[str, ...]) -> None:
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name: str, *where: Any) -> Any:
        """None for what is hidden."""
        return None if name.split(".")[0] in self.hidden else self.finder.find_spec(name, *where)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def run(what: str, hidden: tuple[str, ...] = ()) -> None:
    """Runs `score` or `train`, after importing all rooms."""
    # What an earlier call put on comes off.
    finders = [finder.finder if isinstance(finder, Blinkered) else finder for finder in sys.meta_path]
    sys.meta_path[:] = [Blinkered(finder, hidden) for finder in finders]
    count = import_rooms()
    with tempfile.TemporaryDirectory() as work:
        {"score": score, "train": train}[what](Path(work))
    present = sorted({name.split(".")[0] for name in sys.modules} & set(HIDDEN))
    sys.stdout.write(f"{what}: {count} modules imported; of what should not be needed, loaded: {present}\n")


def in_an_environment_of_its_own() -> None:
    """What `make bare` does."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "venv", "bin", "python")
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        for packages, what in ((("torch==2.13.0", "transformers"), "score"), (("transformers[torch]",), "train")):
            subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--constraint",
                            ROOT / "requirements.lock", *packages], check=True)
            subprocess.run([python, "-m", __spec__.name, what], check=True, cwd=ROOT)


def test_scoring_needs_pytorch_and_transformers_training_what_their_extra_brings() -> None:
    # One process for both, since starting is what takes the time.
    bare, extra = (*HIDDEN, "accelerate"), tuple(name for name in HIDDEN if name not in TRAINING)
    script = f"from tests import test_bare_machine as it; it.run('score', {bare}); it.run('train', {extra})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("modules imported") == 2


if __name__ == "__main__":
    in_an_environment_of_its_own() if len(sys.argv) == 1 else run(sys.argv[1])

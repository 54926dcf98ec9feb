"""Clocks, results and models of known shapes for the parts."""

from __future__ import annotations

import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "transformers", "accelerate", "peft", "numpy")
# Published shapes; weights are random. Qwen2.5-7B, Llama-3.2-1B, Qwen2.5-0.5B.
SHAPES: dict[str, dict[str, Any]] = {
    "7b": {"kind": "qwen2", "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944,
           "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6},
    "1b": {"kind": "llama", "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
           "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
           "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    "0.5b": {"kind": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864,
             "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
             "tie_word_embeddings": True},
    "mini": {"kind": "qwen2", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
}
POSITIONS = 8192


class Budget:
    """Seconds of a part."""

    def __init__(self, seconds: float) -> None:
        self._begin, self._seconds = time.monotonic(), seconds

    def spent(self) -> float:
        return time.monotonic() - self._begin

    def left(self) -> float:
        return self._seconds - self.spent()


@dataclass
class Result:
    """What a part found so far, written after every figure."""

    folder: Path
    part: str
    device: str
    figures: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0

    @classmethod
    def open(cls, folder: Path, part: str, device: str) -> Result:
        """One that was written before, or none."""
        path = folder / f"{part}.json"
        if not path.exists():
            return cls(folder, part, device)
        found = json.loads(path.read_text())
        return cls(folder, part, device, found["figures"], found["notes"], found["error"], found["seconds"])

    def add(self, name: str, values: Sequence[float] | float, unit: str, bar: str = "", **more: Any) -> float:
        """A figure: the median of its rounds. Returns it."""
        rounds = [values] if isinstance(values, (int, float)) else list(values)
        figure = {"name": name, "value": statistics.median(rounds), "low": min(rounds), "high": max(rounds),
                  "rounds": len(rounds), "unit": unit, "bar": bar, **more}
        self.figures.append(figure)
        self.write()
        say(told(self.part, figure))
        return figure["value"]

    def note(self, **more: Any) -> None:
        """What was measured with, and reasons for what was not."""
        self.notes |= more
        self.write()
        say(f"{self.part}: {json.dumps(more, default=str)[:400]}")

    def write(self) -> None:
        path = self.folder / f"{self.part}.json"
        text = json.dumps({
            "part": self.part, "device": device_name(self.device), "versions": versions(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "seconds": self.seconds,
            "error": self.error, "notes": self.notes, "figures": self.figures}, indent=1, default=str)
        path.with_suffix(".part").write_text(text + "\n")
        path.with_suffix(".part").replace(path)


@dataclass
class Job:
    """What a part is asked to do."""

    result: Result
    budget: Budget
    device: str
    mini: bool
    peers: Path | None

    @property
    def dtype(self) -> str:
        """What models compute in."""
        return "float32" if self.mini else "bfloat16"

    def peer(self, release: str) -> str | None:
        """Puts a release of TRL on the path. Returns why it is not there, None where it is."""
        if self.peers is not None:
            for folder in sorted(self.peers.iterdir()):
                if folder.is_dir() and (not folder.name.startswith("trl-") or folder.name == f"trl-{release}"):
                    sys.path.insert(0, str(folder))
        try:
            import trl
        except Exception as error:
            return f"no TRL {release}: {type(error).__name__}: {str(error)[:300]}"
        return None if trl.__version__ == release else f"TRL is {trl.__version__}, not {release}"


def told(part: str, figure: dict[str, Any]) -> str:
    bar = f"  (bar {figure['bar']})" if figure["bar"] else ""
    return (f"{part}: {figure['name']}: {figure['value']:.4g} {figure['unit']} "
            f"[{figure['low']:.4g} to {figure['high']:.4g}, {figure['rounds']} rounds]{bar}")


def say(text: str) -> None:
    sys.stdout.write(f"{datetime.datetime.now(datetime.UTC):%H:%M:%S} {text}\n")
    sys.stdout.flush()


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found | {"python": sys.version.split()[0]}


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], Any], device: str) -> float:
    """Seconds of one call."""
    wait(device)
    begin = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - begin


def memory_folder() -> str | None:
    """A folder in memory, where there is one: what is written there is not what is timed."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def configuration(shape: str) -> Any:
    """The config of a model of a shape, for chains without an end or a pad of their own."""
    from transformers import LlamaConfig, Qwen2Config

    values = dict(SHAPES[shape])
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[values.pop("kind")]
    return kind(max_position_embeddings=POSITIONS, bos_token_id=None, eos_token_id=END, pad_token_id=END,
                attn_implementation="sdpa", **values)


def build(auto: Any, config: Any, device: str, dtype: str, seed: int = 0) -> Any:
    """A model with random weights, made on the device."""
    import torch

    torch.manual_seed(seed)
    with torch.device(device):
        return auto.from_config(config, dtype=getattr(torch, dtype)).eval()


def layer_weights(config: Any) -> int:
    """Weights of the layers' matrices: what a token is multiplied with, without embeddings and head."""
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    attention = width * head * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    return config.num_hidden_layers * (attention + 3 * width * inner)


# Ids of the pack's tokenizer.
UNKNOWN, END, STEP = 0, 1, 2


def tokenizer(size: int) -> Any:
    """Words w3, w4, … for ids 3, 4, …, one for each row of a vocabulary; chains end with <end>, steps with <step>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": UNKNOWN, "<end>": END, "<step>": STEP} | {f"w{number}": number for number in range(3, size)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<end>", pad_token="<end>")


def words(rng: Any, count: int, size: int) -> str:
    """Random words of the tokenizer."""
    return " ".join(f"w{rng.randrange(3, size)}" for _ in range(count))


def encoder(size: int, length: int) -> Any:
    """Of chains of the pack's tokenizer; a step ends with <step>."""
    from prm_core.config import EncoderConfig
    from prm_core.models.encoder import Encoder

    return Encoder(tokenizer(size), EncoderConfig(max_length=length, separator="<step>", renderer=1))


def memory_rate(device: str, mini: bool) -> float:
    """Bytes a second that a large copy reads and writes."""
    import torch

    source = torch.empty(1 << (20 if mini else 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * len(source) / min(timed(lambda: target.copy_(source), device) for _ in range(5))


def product_rate(device: str, mini: bool) -> float:
    """Floating-point operations a second of a large product in bfloat16."""
    import torch

    size = 256 if mini else 8192
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    one @ other
    return 2 * size**3 / min(timed(lambda: one @ other, device) for _ in range(5))


def free(device: str) -> None:
    """Gives memory of what is gone back to the device."""
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def sturdy(job: Job, backbone: Any) -> None:
    """Leaves out of the product's ways on a GPU what does not work on this one, and notes it: a figure that is slower
    for it is still a figure."""
    from prm_core.models.static import attention, decoder, graph

    for what, module, name in (("", None, ""), ("the kernel of attention", attention, "FUSED"),
                               ("compiled functions", graph, "COMPILED")):
        if module is not None:
            setattr(module, name, ())
            job.result.note(left_out=what)
        try:
            if decoder.supports(backbone):
                return
            reason = "its states are not the model's"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        job.result.note(failed=reason[:600])

"""Texts of any kind on the way to a score: how many of 10,000 turns are refused, altered, or read like another.

    python -m benchmarks.agent_texts --out benchmarks/results/agent_texts.json

Every turn is encoded for a reward model, read back and compared, and scored by a small model with random weights; texts
are drawn from all of Unicode and from what spells the encoder's own tokens, so that a boundary that text can hit shows.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from benchmarks.report import Bar, arguments, write
from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.tokenizer import train_tokenizer
from prm_core.platform.progress import track
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.kinds import REWARD_MODELS
from prm_core.scoring.scorer import RewardScorer
from prm_core.turns import BOUNDARY, MARKS, SPOKEN
from prm_core.types import Call, Message, Step

TURNS, QUICK, LENGTH, PER_CHAIN = 10_000, 1_000, 24, 5
SPELLED = (BOUNDARY, *MARKS, "<bos>", "<eos>", "<pad>", "\n", "\n\n", "\r\n", "\t", " ", "  ", "\u2028", "\x00", "{}")


def text(rng: random.Random, least: int = 0) -> str:
    """Any text: characters of all planes but halves of surrogate pairs, and what spells tokens."""
    pieces = []
    for _ in range(rng.randint(least, LENGTH)):
        kind = rng.random()
        if kind < 0.15:
            pieces.append(rng.choice(SPELLED))
        elif kind < 0.6:
            pieces.append(chr(rng.randint(0, 0x7F)))
        else:
            pieces.append(chr(rng.choice((rng.randint(0x80, 0xD7FF), rng.randint(0xE000, 0x10FFFF)))))
    return "".join(pieces)


def turn(rng: random.Random) -> Step:
    """Any turn in which the agent wrote something."""
    calls = []
    for _ in range(rng.choice((0, 0, 1, 3))):
        failed = rng.random() < 0.2
        result = text(rng) if failed or rng.random() < 0.8 else None
        calls.append(Call(text(rng, 1), text(rng), result, failed))
    context = [Message(rng.choice(sorted(SPOKEN)), text(rng), rng.choice(("", text(rng))))
               for _ in range(rng.choice((0, 0, 2)))]
    return Step(text(rng, 1), rng.choice(("", text(rng))), rng.choice(("", text(rng))), rng.choice(("", text(rng))),
                tuple(calls), tuple(context))


def scorer_of(encoder: Encoder) -> RewardScorer:
    """A reward model with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(
            vocab_size=len(encoder.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=encoder.config.max_length,
            bos_token_id=encoder.tokenizer.bos_token_id, eos_token_id=encoder.eos_id)).save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        model = REWARD_MODELS["process"].from_backbone(
            str(Path(folder)), surprisal=False, encoder={"separator": BOUNDARY, "renderer": 2}, dtype="float32",
            device="cpu")
    return RewardScorer(model, encoder, Calibrator("identity", 0), "random", 64)


def main() -> None:
    """Counts what goes wrong; writes and prints the result."""
    given = arguments("agent_texts")
    count, rng = QUICK if given.quick else TURNS, random.Random(0)
    encoder = Encoder(train_tokenizer(["What do 3 red pens cost?"]), EncoderConfig(max_length=16_384))
    scorer = scorer_of(encoder)
    refused = altered = unscored = 0
    seen: dict[tuple[int, ...], tuple[str, tuple[Step, ...]]] = {}
    alike = 0
    for _ in track(range(count // PER_CHAIN), "chains", unit="chain"):
        prompt, steps = text(rng, 1), tuple(turn(rng) for _ in range(PER_CHAIN))
        try:
            encoded = encoder.encode(prompt, steps)
            found, = scorer.score([(prompt, steps)])
        except InputError:
            refused += PER_CHAIN
            continue
        back = encoder.decode(encoded.ids)
        altered += sum(one != other for one, other in zip(back[1], steps, strict=False)) + PER_CHAIN * (
            back[0] != prompt or len(back[1]) != len(steps))
        unscored += PER_CHAIN - len(found.step_scores)
        other = seen.setdefault(tuple(encoded.ids), (prompt, steps))
        alike += other != (prompt, steps)
    bars = [Bar(name, value, None, None, "0", value == 0) for name, value in (
        (f"of {count:,} turns: refused", refused), ("altered on the way", altered), ("without a score", unscored),
        ("chains that read like another", alike))]
    write(given, bars, turns=count)


if __name__ == "__main__":
    main()

"""Builders for tests of models and labelling: a problem, the real tokenizer, a random Llama, a scripted policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from prm_core.config import Config, EncoderConfig
from prm_core.domains import DOMAINS, arithmetic, make_trajectory
from prm_core.labeling.strategies.base import Chain, LabelingTools
from prm_core.models.encoder import Encoder
from prm_core.models.tokenizer import train_tokenizer
from prm_core.sampling.policy import Policy
from prm_core.sampling.sampler import Continuation, Prefix
from prm_core.types import Problem
from tests.builders.quality import make_config

MAX_LENGTH = 256
RIGHT = ("Mia buys 4 more: 3 + 4 = 7.", "Mia loses 2: 7 - 2 = 5.", "The answer is 5.")
WRONG = ("Mia buys 4 more: 3 + 4 = 8.", "Mia loses 2: 8 - 2 = 6.", "The answer is 6.")


def mia(problem_id: str = "p0") -> Problem:
    """3 + 4 - 2 = 5 apples."""
    return Problem(
        problem_id, "arithmetic", "Mia has 3 apples. Mia buys 4 more. Mia loses 2. How many apples does Mia have?", "5",
        {"start": 3, "events": [["Mia buys 4 more", "+", 4], ["Mia loses 2", "-", 2]], "solution": list(RIGHT)},
    )


def chain(
    texts: Sequence[str], problem: Problem | None = None, trajectory_id: str = "t0", policy: str = "test"
) -> Chain:
    """A chain with its problem, its answer read and compared."""
    problem = problem or mia()
    trajectory = make_trajectory(DOMAINS[problem.domain], problem, list(texts), trajectory_id=trajectory_id,
                                 policy=policy, seed=0)
    return Chain(problem, trajectory)


@cache
def _tokenizer() -> Any:
    problems = arithmetic.make_problems("warmup", 200, 0)
    return train_tokenizer(t for p in problems for t in (p.prompt, *p.meta["solution"]))


def make_encoder(max_length: int = MAX_LENGTH, **settings: Any) -> Encoder:
    """The project's own tokenizer, trained on a few embedded problems."""
    return Encoder(_tokenizer(), EncoderConfig(max_length=max_length, **settings))


def make_model(encoder: Encoder, seed: int = 0) -> Any:
    """A Llama of 2 layers x 32 with random weights, in eval mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(encoder.tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=MAX_LENGTH, tie_word_embeddings=True,
        initializer_range=0.3, bos_token_id=encoder.tokenizer.bos_token_id, eos_token_id=encoder.eos_id,
        pad_token_id=encoder.pad_id,
    )).eval()


def make_policy(seed: int = 0) -> Policy:
    """A policy that writes nonsense, and a language model that expects it."""
    encoder = make_encoder()
    return Policy(make_model(encoder, seed), encoder, f"tiny-{seed}")


def save_policy(folder: Path, seed: int = 0) -> Path:
    """A Hugging Face folder with a tiny policy."""
    policy = make_policy(seed)
    policy.model.save_pretrained(folder)
    policy.encoder.tokenizer.save_pretrained(folder)
    return folder


# (steps of the prefix, how many samples of it were drawn before in this call) → (steps to add, ends by itself)
Script = Callable[[tuple[str, ...], int], tuple[Sequence[str], bool]]


def answering(wins: Callable[[tuple[str, ...], int], bool]) -> Script:
    """A script that answers at once, right or wrong as `wins` says of the prefix and how often it was drawn before, in
    all calls together."""
    drawn: Counter[tuple[str, ...]] = Counter()

    def script(steps: tuple[str, ...], number: int) -> tuple[Sequence[str], bool]:
        drawn[steps] += 1
        return [RIGHT[2] if wins(steps, drawn[steps] - 1) else WRONG[2]], True

    return script


def tokens_of(*texts: str, ended: bool = True) -> int:
    """Tokens of a continuation by these steps."""
    encoder = make_encoder()
    return sum(map(len, encoder.encode_steps(texts))) + ended


class ScriptedPolicy(Policy):
    """A policy without weights whose continuations are given; `asked` lists the prefix of every sample and
    `settings` temperature, max_new_tokens, batch_size and seed, by call."""

    def __init__(self, script: Script, max_length: int = MAX_LENGTH) -> None:
        super().__init__(None, make_encoder(max_length), "scripted")
        self.script = script
        self.asked: list[list[tuple[str, ...]]] = []
        self.settings: list[tuple[float, int, int, int]] = []

    def continue_chains(
        self, chains: Sequence[Sequence[int]], prefixes: Sequence[Prefix], *, temperature: float, max_new_tokens: int,
        batch_size: int, seed: int, stop_ids: Sequence[int] = (), avoid: Sequence[Sequence[Continuation]] = (),
    ) -> list[Continuation]:
        drawn: Counter[Prefix] = Counter()
        result = []
        self.asked.append([])
        self.settings.append((temperature, max_new_tokens, batch_size, seed))
        for prefix in prefixes:
            ids = chains[prefix.chain][: prefix.length]
            # The question ends at the first separator.
            steps = self.encoder.decode_steps(ids[ids.index(self.encoder.separator_id) + 1 :])
            assert ids[-1] == self.encoder.separator_id, "a prefix ends with a whole step"
            self.asked[-1].append(steps)
            texts, finished = self.script(steps, drawn[prefix])
            drawn[prefix] += 1
            if stop_ids and texts:
                # Up to the first boundary.
                texts, finished, stopped = texts[:1], False, True
            else:
                stopped = False
            new = [token for block in self.encoder.encode_steps(texts) for token, _ in block]
            new += [self.encoder.eos_id] if finished else []
            result.append(Continuation(new, [0.0] * len(new), finished or stopped, len(ids) - 1))
        return result

    @contextmanager
    def keeping_prefixes(self) -> Iterator[None]:
        """Nothing: it reads none."""
        yield


def make_tools(policy: Policy, backbone: Policy | None = None, **label: Any) -> LabelingTools:
    """What strategies work with; `label` lies over the section of that name."""
    config: Config = make_config(label=label)
    return LabelingTools(config, DOMAINS, policy, backbone or policy)

"""vLLM in this process, against a stand-in of its interface: vLLM itself needs a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from prm_core.errors import InputError
from prm_core.sampling.backends import policy_for
from prm_core.sampling.policy import load_policy
from prm_core.sampling.sampler import Prefix
from tests.builders import tiny
from tests.builders.quality import make_config

CONFIG = make_config(sampling={"backend": "vllm", "memory_share": 0.5})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save_policy(tmp_path / "policy")


@pytest.fixture
def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the engine was made with, and asked for."""
    seen: dict[str, Any] = {}

    class LLM:
        def __init__(self, **options: Any) -> None:
            seen["options"] = options
            self.policy = load_policy(options["model"], make_config())

        def generate(self, prompts: Any, settings: Any, use_tqdm: bool) -> list[Any]:
            seen["asked"] = [(tuple(prompt["prompt_token_ids"]), vars(one)) for prompt, one in zip(
                prompts, settings, strict=True)]
            return [self.answer(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, settings, strict=True)]

        def answer(self, ids: list[int], asked: Any) -> Any:
            drawn = self.policy.continue_chains(
                [ids], [Prefix(0, len(ids))] * asked.n, temperature=asked.temperature, max_new_tokens=asked.max_tokens,
                batch_size=8, seed=asked.seed, stop_ids=asked.stop_token_ids)
            outputs = [SimpleNamespace(index=place, token_ids=one.ids, logprobs=[
                {token: SimpleNamespace(logprob=value), -1: SimpleNamespace(logprob=0.0)}
                for token, value in zip(one.ids, one.logprobs, strict=True)]) for place, one in enumerate(drawn)]
            return SimpleNamespace(outputs=outputs[::-1], num_cached_tokens=3)

    stand_in = ModuleType("vllm")
    stand_in.LLM, stand_in.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    return seen


def test_continuations_are_those_of_the_weights(folder: Path, made: dict[str, Any]) -> None:
    policy = policy_for("generate", str(folder), CONFIG)
    here = load_policy(str(folder), CONFIG)
    ids = [here.encoder.encode_prompt(text) for text in ("How many?", "How many apples?")]
    prefixes = [Prefix(row, len(ids[row])) for row in (0, 1, 0)]
    how = {"temperature": 0.0, "max_new_tokens": 12, "batch_size": 8, "seed": 1}

    found = policy.continue_chains(ids, prefixes, **how)

    expected = here.continue_chains(ids, prefixes, **how)
    assert [(one.ids, one.finished) for one in found] == [(one.ids, one.finished) for one in expected]
    assert [one.logprobs for one in found] == [pytest.approx(one.logprobs, abs=1e-4) for one in expected]
    assert sorted(one["n"] for _, one in made["asked"]) == [1, 2]
    assert all(one["ignore_eos"] and one["stop_token_ids"] == [here.encoder.eos_id] and one["top_k"] == 0
               and one["logprobs"] == 0 for _, one in made["asked"])
    assert policy.figures()["prompt_tokens"] == len(ids[0]) + len(ids[1])
    assert policy.figures()["completion_tokens"] == sum(len(one.ids) for one in found)
    assert policy.figures()["cached_tokens"] == 6
    # What the cache had is not read again; the second of one prefix reads nothing.
    assert [one.read for one in found] == [len(ids[0]) - 4, len(ids[1]) - 4, 0]
    assert not policy.forks
    assert made["options"] | {"model": ""} == {
        "model": "", "dtype": "float32", "max_model_len": CONFIG.encoder.max_length, "seed": CONFIG.seed,
        "gpu_memory_utilization": 0.5, "enable_prefix_caching": True, "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm"}


def test_what_the_engine_refuses_names_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise ValueError("no room for the KV cache\nand more")

    stand_in = ModuleType("vllm")
    stand_in.LLM = refuse
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    with pytest.raises(InputError, match=r"vLLM does not load it \(no room for the KV cache\); set sampling.backend"):
        policy_for("generate", str(folder), CONFIG)

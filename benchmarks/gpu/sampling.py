"""Tokens a second of the sampler against `generate`, groups of samples of the same prompts."""

from __future__ import annotations

import random
from typing import Any

import torch

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Job

PROMPTS, GROUP, PROMPT, NEW = 32, 8, 128, 256
ROUNDS = 3


def work(job: Job) -> None:
    """The two in turn, as many rounds as there is time for."""
    from transformers import AutoModelForCausalLM

    from prm_core.sampling import sampler
    from prm_core.sampling.sampler import Prefix, sample_continuations

    result, device = job.result, job.device
    prompts, group, length, new = (3, 2, 10, 20) if job.mini else (PROMPTS, GROUP, PROMPT, NEW)
    if job.mini:
        sampler.GRAPHED = ("cpu", "cuda")
    config = measure.configuration("mini" if job.mini else "0.5b")
    model = measure.build(AutoModelForCausalLM, config, device, job.dtype)
    measure.sturdy(job, model.base_model)
    rng = random.Random(0)
    chains = [[rng.randrange(3, config.vocab_size) for _ in range(length)] for _ in range(prompts)]
    prefixes = [Prefix(number, length) for number in range(prompts) for _ in range(group)]
    result.note(shape=config.to_dict(), prompts=prompts, group=group, prompt_tokens=length, new_tokens=new,
                dtype=job.dtype, built_after=job.budget.spent())
    tokens: list[float] = []

    def ours(seed: int, most: int = new, temperature: float = 1.0) -> list[Any]:
        found = sample_continuations(model, chains, prefixes, end_id=measure.END, pad_id=measure.END,
                                     temperature=temperature, max_new_tokens=most, batch_size=len(prefixes), seed=seed)
        tokens.append(sum(len(one.ids) for one in found))
        return found

    ids = torch.tensor([chains[prefix.chain] for prefix in prefixes], device=device)

    def peer(most: int = new) -> None:
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=most, eos_token_id=measure.END, pad_token_id=measure.END)
        drawn = found[:, length:]
        # The end token counts, what fills up after it does not.
        tokens.append(float(((drawn != measure.END).cumprod(1).sum(1) + 1).clamp(max=drawn.shape[1]).sum()))

    # What is compiled and captured, and what a first call costs, apart.
    result.add("ours, the first call, which makes the graph", measure.timed(lambda: ours(0), device), "s")
    peer(8)
    rates: dict[str, list[float]] = {"ours": [], "generate": []}
    for number in range(ROUNDS):
        if number and job.budget.left() < 15:
            break
        for name, call in (("ours", lambda number=number: ours(number + 1)), ("generate", peer)):
            seconds = measure.timed(call, device)
            rates[name].append(tokens[-1] / seconds)
    for name, found in rates.items():
        result.add(f"{name}, {len(prefixes)} rows", found, "tokens/s")
    result.add("ours / generate", [one / other for one, other in zip(rates["ours"], rates["generate"], strict=True)],
               "x", ">= 8")
    _agrees(job, model, chains, prefixes, ours(99, min(new, 64)))
    _pieces(job, model, chains, prefixes, new)


def _agrees(job: Job, model: Any, chains: list[list[int]], prefixes: list[Any], found: list[Any]) -> None:
    """Log-probabilities as they were sampled against those of a pass over the whole texts."""
    differences = []
    with torch.inference_mode():
        for prefix, one in list(zip(prefixes, found, strict=True))[:8]:
            text = torch.tensor([chains[prefix.chain] + one.ids], device=job.device)
            logits = model(text).logits[0, prefix.length - 1 : -1].float()
            whole = logits.log_softmax(-1).gather(1, text[0, prefix.length :, None]).squeeze(1)
            differences.append((whole.cpu() - torch.tensor(one.logprobs)).abs().mean().item())
    job.result.add("log-probabilities against a pass over whole texts, mean absolute difference", differences, "nat")


def _pieces(job: Job, model: Any, chains: list[list[int]], prefixes: list[Any], new: int) -> None:
    """Where a step's time goes: the whole graph, the draw alone, the head alone."""
    from prm_core.models.static.graph import Graphed
    from prm_core.sampling.drawing import draw

    rows = len(prefixes)
    with torch.inference_mode():
        logits = torch.randn(rows, model.config.vocab_size, device=job.device, dtype=model.dtype)
        hidden = torch.randn(rows, model.config.hidden_size, device=job.device, dtype=model.dtype)
        chance = torch.rand(rows, device=job.device)
        for name, call in (("the draw", Graphed(lambda one, two: draw(one, 1.0, two), logits, chance)),
                           ("the head", Graphed(lambda one, two: model.get_output_embeddings()(one), hidden, chance))):
            given = (logits, chance) if name == "the draw" else (hidden, chance)
            times = [measure.timed(lambda call=call, given=given: call(*given), job.device) for _ in range(8)]
            job.result.add(f"{name} of a step", [1e3 * one for one in times[2:]], "ms")

"""A policy of seconds that was taught a few worked solutions: it writes whole words, boundaries and ends, as a random
one does not."""

from __future__ import annotations

from pathlib import Path

from prm_core.domains import arithmetic
from prm_core.sampling.policy import Policy
from tests.builders import tiny

UPDATES, ROWS = 80, 16


def make_policy(seed: int = 0, updates: int = UPDATES) -> Policy:
    """A tiny policy after some updates on solutions of embedded problems."""
    import torch

    from prm_core.models.padding import pad

    encoder = tiny.make_encoder()
    model = tiny.make_model(encoder, seed).train()
    chains = [encoder.encode(problem.prompt, problem.meta["solution"], end=True)
              for problem in arithmetic.make_problems("warmup", 200, seed)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        picked = [chains[i] for i in torch.randint(len(chains), (ROWS,), generator=generator).tolist()]
        ids = pad([one.ids for one in picked], encoder.pad_id)
        written = pad([[int(flag) for flag in one.scored] for one in picked], 0).bool()
        loss = model(input_ids=ids, labels=ids.where(written, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return Policy(model.eval(), encoder, f"taught-{seed}")


def save_policy(folder: Path, seed: int = 0, updates: int = UPDATES) -> Path:
    """A Hugging Face folder with one, as the chain saves policies."""
    from prm_core.models.saving import save_language_model

    policy = make_policy(seed, updates)
    save_language_model(policy.model, policy.encoder, folder)
    return folder

"""Rows that fit in memory: by hand, and that the bound changes no sample."""

from __future__ import annotations

from prm_core.models.batching import sampling_rows
from prm_core.sampling.policy import Policy
from tests.builders import tiny


def test_rows_by_hand():
    model = tiny.make_policy().model
    config = model.config
    # 2 layers x 2 heads x 16 wide x keys and values x float32, twice; three float32 rows over the vocabulary.
    row = 2 * 50 * (2 * 2 * 2 * 16 * 4) + 12 * config.vocab_size
    assert sampling_rows(model, 10 * row / 2**30, tokens=50) == 10
    assert sampling_rows(model, 10.9 * row / 2**30, tokens=50) == 10
    assert sampling_rows(model, 1e-12, tokens=50) == 1


def test_a_memory_bound_shrinks_batches_and_changes_no_sample(monkeypatch):
    free = tiny.make_policy()
    bound = Policy(free.model, free.encoder, free.version, sampling_memory=1e-4)
    seen = []
    from prm_core.sampling import sampler

    original = sampler.sample_continuations
    monkeypatch.setattr(sampler, "sample_continuations",
                        lambda *a, batch_size, **k: seen.append(batch_size) or original(*a, batch_size=batch_size, **k))
    drawn = [policy.sample(["Mia has 3 apples."] * 3, samples=4, temperature=1.0, max_new_tokens=8, batch_size=64,
                           seed=5) for policy in (free, bound)]
    assert seen[0] == 64 > seen[1] >= 1
    assert drawn[0] == drawn[1]

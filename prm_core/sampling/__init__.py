"""Policies at work: chains and continuations sampled in batches, rollouts of problems. Other engines: `backends/`.

No scores (`prm_core/scoring`) and no choice among chains (`prm_core/search`).
"""

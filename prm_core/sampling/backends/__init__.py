"""Where a policy's chains are sampled: here, by a server over HTTP, by vLLM in this process.

All of them are a `Policy`: prefixes go in, continuations with token ids and log-probabilities come out.

`named.py` has their names, `base.py` what those without weights here share, `server.py` one that is asked over HTTP,
`kinds.py` what servers want to be asked and how they answer, `match.py` the comparison of what came with the weights
here, `engine.py` vLLM.
"""

from prm_core.sampling.backends.named import BACKENDS, policy_for

__all__ = ["BACKENDS", "policy_for"]

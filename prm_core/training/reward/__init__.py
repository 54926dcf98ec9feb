"""Training reward models: from labels or published data to rows of tokens, the loop, its losses.

The models themselves are in `prm_core/scoring`; no policy is trained here.
"""

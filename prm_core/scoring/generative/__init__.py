"""A verifier that writes: for each step a short check of its own, which a tool executes, and then its verdict.

`checks.py` has the texts and the tool, `scorer.py` the scorer by the interface that all scorers have. How one is
trained is in `prm_core/training/generative.py`; the labelling strategy `verifier`, without a model, is another thing.
"""

"""Training: warm-up of base models here, reward models in `reward`, policies in `policy`.

What they share lies beside: checkpoints and exact resume, batches, examples, trees of chains, added harmless steps.
The models themselves are in `prm_core/scoring` and `prm_core/sampling`.
"""

"""Training: warm-up of base models here, reward models in `reward`, policies in `policy`; what they share lies beside.

The models themselves are in `prm_core/scoring` and `prm_core/sampling`.
"""

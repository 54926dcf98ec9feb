"""Language models whatever they are for: loading, tokens and step positions, padding, batches, likelihood, dropout.

Models that write are in `prm_core/sampling`, models that score in `prm_core/scoring`, how they are trained in
`prm_core/training`.
"""

"""People judge steps: the queue, the local page and its state, files out and answers in, a run's pause for all that.

What their labels mean and where they lie is in `prm_core/labeling/human`.
"""

"""What is measured: figures with intervals, and the chain's own evaluation. Nothing is trained or chosen here.

judged_chains.py samples, judges and scores held-out chains, protocol.py chooses the threshold and makes the table of
figures, metrics.py has the formulas. Published data sets are in `benchmarks`, small edits that fool a model in
`adversarial`, the HTML page in `report`.
"""

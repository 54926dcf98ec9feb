"""What is measured: figures with intervals, and the chain's own evaluation. Nothing is trained or chosen here.

Published data sets are in `benchmarks`, small edits that fool a model in `adversarial`, the HTML page in `report`.
"""

"""Step labels, from first verdicts to calibrated probabilities.

Who gives them is in `strategies`, how they combine in `merging`, whether they may pass in `validation`, what people
said in `human`; what they are then worth in calibrate.py and stacking.py. How people are asked is in `prm_core/review`.
"""

"""Step labels: strategies, verdict rules, merging, validation, calibration, human review."""

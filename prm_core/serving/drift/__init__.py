"""Served traffic against what the model was calibrated on: what is kept of it (`samples.py`, `recorder.py`), how it is
compared (`features.py`, `compare.py`, `accuracy.py`), and how long a calibration is relied upon (`trust.py`).

`check.py` does all of it for a window; people's verdicts on a drawn part become a new calibration in `recalibrate.py`.
When it runs is a flow's (`flows/drift.py`). How labels change from run to run is labelling's (`labeling/validation/`).
"""

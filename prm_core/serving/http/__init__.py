"""The HTTP edge of a served reward model: wire formats, limits, keys, metrics, logs, draining.

`edge.py` is the application; `native.py`, `decisions.py` and `rewards.py` are what it is asked and answers. Which model
is served is `prm_core/serving/app.py`'s, and what it says of a trajectory `prm_core/serving/service.py`'s, the only
scoring that is called from here.
"""

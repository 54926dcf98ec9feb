"""A reward model that goes on learning from what it serves, under control: `loop.py` has a round of it.

Served trajectories and their outcomes (`traffic.py`) are labelled by what is known of them (`relabel.py`), people are
asked about the most telling steps (`ask.py`), a challenger is trained from the champion (`training.py`), measured on
old and new chains (`measure.py`) and promoted or refused (`gate.py`). `lineage.py` keeps what each version was made of
and what was undone, `withdrawal.py` takes data out of all of it. Samples and outcomes are written by the server
(`prm_core/serving/drift`); when rounds run is a flow's (`flows/adapt.py`).
"""

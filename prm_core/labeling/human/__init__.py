"""Human labels as data: reading and writing `data/human`, agreement of reviewers, which steps are worth asking about.

How people are asked and how answers come in is in `prm_core/review`.
"""

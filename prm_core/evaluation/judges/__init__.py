"""Judges of trajectories side by side: what a judge is (`base`), the rules, reward models and language models as judges
(`rules`, `models`), trajectories with gold (`cases`), and the comparison (`comparison`, its `tables` and `chart`)."""

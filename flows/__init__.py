"""Prefect flows: when and where stages run. No maths, and nothing of how a stage works."""

from prm_core.platform import environment

# Prefect reads its settings when it is imported.
environment.apply()

"""Tests, in the tree of what they test: tests/scoring/test_scorer.py is of prm_core/scoring/scorer.py.

What several of them build with is in tests/builders; what every test runs under, in conftest.py.
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent

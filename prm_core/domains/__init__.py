"""Domains: kinds of problems, registered by name. The oracle is not imported here; see `oracle.py`."""

from prm_core.domains import arithmetic, general
from prm_core.domains.base import DOMAINS, Domain, make_trajectory

__all__ = ["DOMAINS", "Domain", "arithmetic", "general", "make_trajectory"]

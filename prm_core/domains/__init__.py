"""Domains: kinds of problems, registered by name; how their answers are read, how they are made, where they can be.

The exact judge of steps is oracle.py, which nothing imports that labels or trains. A domain with an environment (tools,
simulated users) is a package. Comparing answers is in `prm_core/maths`, writing `data/` in `prm_core/problems`.
"""

# Imported for their registration, a line each.
from prm_core.domains import arithmetic as arithmetic
from prm_core.domains import errands as errands
from prm_core.domains import general as general
from prm_core.domains.base import DOMAINS, Domain, Environment, Reply, make_trajectory

__all__ = ["DOMAINS", "Domain", "Environment", "Reply", "make_trajectory"]

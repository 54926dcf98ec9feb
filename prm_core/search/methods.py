"""Every search method by name, and the one way a search is run."""

from __future__ import annotations

import random
from collections.abc import Sequence

from prm_core.config import WorkersConfig
from prm_core.domains.base import Domain
from prm_core.errors import InputError
from prm_core.platform import shards, workers
from prm_core.registry import Registry

# Imported for their registration.
from prm_core.search import steps as steps
from prm_core.search import whole as whole
from prm_core.search.base import METHODS, Found, Tools
from prm_core.types import Problem

__all__ = ["METHODS", "search", "search_all"]

# Problems that are searched together: many fill batches, fewer bound what is kept of their prefixes.
TOGETHER = 150


def check(method: str, problems: Sequence[Problem], tools: Tools) -> None:
    """Raises InputError for an unknown method, one that needs what the reward model or the domain has not, or problems
    of one id."""
    chosen = METHODS[method]
    if chosen.scores and tools.session is None:
        raise InputError(f"the search method {method} needs a reward model; name one")
    if chosen.scores == "steps" and tools.session is not None and tools.session.kind == "outcome":
        raise InputError(f"the search method {method} chooses among steps, which an outcome reward model does not "
                         "score; name a process reward model")
    if len({problem.id for problem in problems}) < len(problems):
        raise InputError("two problems have one id; give each its own")
    check_environment(method, sorted({problem.domain for problem in problems}), tools.domains)


def check_environment(method: str, names: Sequence[str], domains: Registry[Domain]) -> None:
    """Raises InputError for an unknown method, or one that an environment of these domains does not let work."""
    replied = [name for name in names if domains[name].environment]
    if replied and not METHODS[method].environments:
        able = ", ".join(sorted(name for name in METHODS if METHODS[name].environments))
        raise InputError(f"the search method {method} goes back to earlier steps or writes several at once, which the "
                         f"environment of domain {replied[0]!r} does not let it do; use one of: {able}")



def search(method: str, problems: Sequence[Problem], tools: Tools, seed: int) -> list[Found]:
    """The chain that a method chooses for each problem, in order; the same for the same arguments. Raises InputError as
    `check` does."""
    check(method, problems, tools)
    with tools.policy.keeping_prefixes():
        return METHODS[method].run(problems, tools, seed)


def search_all(
    method: str, problems: Sequence[Problem], tools: Tools, seed: int, who: WorkersConfig = shards.HERE
) -> list[Found]:
    """What `search` gives for many problems, some at a time, shared out among workers (`who`), its progress shown."""
    check(method, problems, tools)
    parts = workers.shards(len(problems), min(TOGETHER, -(-len(problems) // workers.PARTS)))

    def work(shard: int) -> list[Found]:
        part = parts[shard]
        return search(method, problems[part], tools, random.Random(f"{seed}/{part.start}").getrandbits(31))

    found = dict(shards.run(work, len(parts), who, f"search {method}", alone=not tools.policy.forks))
    return [one for shard in range(len(parts)) for one in found[shard]]

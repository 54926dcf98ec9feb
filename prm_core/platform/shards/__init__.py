"""The one map over shards: what is worked on shard by shard, and who does it.

A shard is the unit of retry and resume: it is worked on with a seed of its own, and its file is there whole or not at
all. Who works on shards (`RUNNERS`) is the config's choice, section `workers`: processes forked from this one, or
workers of a Ray cluster; the rows are the same. What is in a shard, the rooms above know; the processes themselves are
`prm_core/platform/workers.py`.
"""

# Imported for its registration.
from prm_core.platform.shards import cluster as cluster
from prm_core.platform.shards.mapping import HERE, RUNNERS, fill, in_order, run

__all__ = ["HERE", "RUNNERS", "fill", "in_order", "run"]

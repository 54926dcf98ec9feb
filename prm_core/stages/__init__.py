"""The stages of the chain. Each is one function `run(config, io)` in a module of its own name.

Their order is base.CHAIN; `dvc.yaml` is made from their declarations (graph.py). The Prefect flow, `dvc repro`, `prm
stage NAME` and the tests all end in `execute`. A stage reads, calls and writes; the work is done in other packages.
"""

from prm_core.stages.base import CHAIN, Stage, StageIO, execute, load_stage

__all__ = ["CHAIN", "Stage", "StageIO", "execute", "load_stage"]

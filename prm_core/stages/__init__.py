"""The stages of the chain. Each is one function `run(config, io)` in a module of its own name.

`dvc.yaml` names the same stages, dependencies and outputs (a test compares them); the Prefect flow, `dvc repro`,
`prm stage NAME` and the tests all end in `execute`.
"""

from prm_core.stages.base import CHAIN, Stage, StageIO, execute, load_stage

__all__ = ["CHAIN", "Stage", "StageIO", "execute", "load_stage"]

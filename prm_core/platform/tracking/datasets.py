"""Data as MLflow's datasets: which of a stage's inputs are data, named by their place in the workspace.

The digest is the one DVC records, so that a dataset of a run is found in dvc.lock and in data.dvc, and the other way
round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prm_core.platform import workspace as workspaces


@dataclass(frozen=True, slots=True)
class DataRef:
    """Data at one moment.

    Attributes:
        name: its path in the workspace.
        digest: as in dvc.lock: MD5, with `.dir` for a folder.
        rows: rows of its Parquet files, lines of its JSONL files.
        role: what it was to the stage that read it.
    """

    name: str
    digest: str
    rows: int
    role: str

    @property
    def profile(self) -> str:
        """MLflow's JSON text of what is known about the contents."""
        return json.dumps({"rows": self.rows})

    @property
    def source(self) -> str:
        """MLflow's JSON text of where it came from: relative to the workspace, which may move."""
        return json.dumps({"uri": self.name})


def find_data(workspace: Path, inputs: Mapping[str, Path]) -> list[DataRef]:
    """The inputs that are data: JSONL files, and folders of JSONL or Parquet files.

    Args:
        workspace: the folder that paths are named in.
        inputs: role → path.
    """
    found = []
    for role, path in inputs.items():
        files = [path] if path.is_file() else sorted(path.glob("*"))
        counts = [count for file in files if (count := _rows(file)) is not None]
        if counts:
            name = path.relative_to(workspace).as_posix() if path.is_relative_to(workspace) else str(path)
            found.append(DataRef(name, workspaces.data_hash(path), sum(counts), role))
    return found


def _rows(path: Path) -> int | None:
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            return sum(bool(line.strip()) for line in file)
    if path.suffix == ".parquet":
        from pyarrow.parquet import read_metadata

        return read_metadata(path).num_rows
    return None

"""Step-labelled data of other projects: one record, and for each format how it is read and written, as streams.

Traces of agents go here too. A user's own problems, which have no labels, are read in `prm_core/problems`.
`FORMATS["processbench"].read(path)` gives `LabelledChain`s one by one; `FORMATS["trl"].write(path, chains)` takes them.
"""

from __future__ import annotations

# Imported for their registration, a line each.
from prm_core.formats import agents as agents
from prm_core.formats import atif as atif
from prm_core.formats import first_error as first_error
from prm_core.formats import marks as marks
from prm_core.formats import math_aps as math_aps
from prm_core.formats import mlflow_traces as mlflow_traces
from prm_core.formats import prm800k as prm800k
from prm_core.formats import stepwise as stepwise
from prm_core.formats.base import FORMATS, Format, LabelledChain, hard_labels
from prm_core.formats.runs import evaluation as evaluation
from prm_core.formats.runs import inspect_logs as inspect_logs
from prm_core.formats.runs import openhands as openhands
from prm_core.formats.runs import otlp as otlp
from prm_core.formats.runs import swe_agent as swe_agent
from prm_core.formats.runs import tau2 as tau2
from prm_core.formats.runs import verifiers as verifiers
from prm_core.formats.trees import labelled_once

__all__ = ["FORMATS", "Format", "LabelledChain", "hard_labels", "labelled_once"]

"""Step-labelled data of other projects: one record, and for each format how it is read and written, as streams.

Traces of agents go here too. A user's own problems, which have no labels, are read in `prm_core/problems`.
`FORMATS["processbench"].read(path)` gives `LabelledChain`s one by one; `FORMATS["trl"].write(path, chains)` takes them.
"""

from __future__ import annotations

# Imported for their registration.
from prm_core.formats import agents, first_error, math_aps, prm800k, stepwise
from prm_core.formats.base import FORMATS, Format, LabelledChain
from prm_core.formats.trees import labelled_once

__all__ = ["FORMATS", "Format", "LabelledChain", "agents", "first_error", "labelled_once", "math_aps", "prm800k",
           "stepwise"]

"""Records read and written in a format, through files as everybody does it."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from prm_core.errors import InputError
from prm_core.formats import FORMATS, LabelledChain
from tests.builders.junk import with_junk


class Files:
    """A format's files in a folder.

    Args:
        name: of the format.
        folder: for the files.

    Attributes:
        noted: what the last reading left out.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._format, self._folder = FORMATS[name], folder
        self.noted = Counter[str]()

    def read(self, *records: Any, **options: Any) -> list[LabelledChain]:
        """The chains of a file of these records, one a line."""
        path, self.noted = self._folder / "in.jsonl", Counter[str]()
        path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        return list(self._format.read(path, noted=self.noted, **options))

    def write(self, *chains: LabelledChain) -> list[Any]:
        """The records of these chains."""
        path, noted = self._folder / "out.jsonl", Counter[str]()
        self._format.write(path, chains, noted=noted)
        self.noted = noted
        return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def with_junk_is_taken_or_refused(name: str, *records: Any) -> None:
    """Reads the records with junk in each place, and writes what was taken, labelled and scored: only InputError."""
    kind = FORMATS[name]
    for changed in with_junk(list(records)):
        rows = [("in", record) for record in changed if isinstance(record, dict)]
        with suppress(InputError):
            chains = [replace(chain, labels=(0.5,) * len(chain.steps), scores=(0.5,) * len(chain.steps))
                      for chain in kind.parse(rows, 1.0, Counter())]
            list(kind.compose(chains, Counter()))

"""What is kept of a trajectory that was scored: figures, names and digests, its texts only where they are asked for."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.platform.steps import to_record
from prm_core.turns import heard, identity, written
from prm_core.types import Step

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

DIGITS = 16
# Of a served trajectory's id, before the digest of its question and steps.
PREFIX = "served-"
SUFFIX = ".parquet"
# Of a file's name, when its first trajectory was answered; so names sort by time.
STAMP = "%Y%m%dT%H%M%S"


@dataclass(frozen=True, slots=True)
class Sample:
    """A scored trajectory.

    Attributes:
        time: of the answer, seconds since 1970.
        source, version: of the model, as answers name it, and its digest.
        renderer: version of how turns became text.
        chance: that its question was drawn, above 0 and at most 1.
        prompt: digest of the question.
        prefixes: digest of the question with the first, the first two, … and all steps.
        scores, raw: of the steps, calibrated and before; `raw` is empty where it is not known.
        lengths: characters of the steps as the model reads them.
        prompt_length: characters of the question.
        first_error: index of the first step below the model's own threshold, -1 for none.
        tools, agents: names of the tools called, one a call, and of who acted, one a step.
        in_domain: whether the model can judge it, None where it cannot tell.
        text: JSON of the question and the steps, None where texts are not kept.
        tenant: name of the API key that asked, empty without keys.
    """

    time: float
    source: str
    version: str
    renderer: int
    chance: float
    prompt: str
    prefixes: Sequence[str]
    scores: Sequence[float]
    raw: Sequence[float]
    lengths: Sequence[int]
    prompt_length: int
    first_error: int
    tools: Sequence[str]
    agents: Sequence[str]
    in_domain: bool | None
    text: str | None = None
    tenant: str = ""


def digest(*parts: Any) -> str:
    """DIGITS hex digits of SHA-256 over JSON values."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:DIGITS]


def sample(
    prompt: str, steps: Sequence[Step], scores: Sequence[float], *, time: float, threshold: float, renderer: int,
    source: str = "", version: str = "", chance: float = 1.0, raw: Sequence[float] = (), in_domain: bool | None = None,
    texts: bool = False, tenant: str = "",
) -> Sample:
    """What is kept of a trajectory.

    Args:
        steps: as many as have a score count.
        threshold: a step that scores lower is called wrong.
        texts: whether they are kept.
    """
    steps = steps[: len(scores)]
    before, prefixes = digest(prompt), []
    for step in steps:
        prefixes.append(before := digest(before, identity([step])))
    text = json.dumps({"prompt": prompt, "steps": [to_record(step) for step in steps]}) if texts else None
    return Sample(
        time, source, version, renderer, chance, digest(prompt), prefixes, list(scores), list(raw),
        [len(written(step)) + len(heard(step)) for step in steps], len(prompt),
        next((index for index, score in enumerate(scores) if score < threshold), -1),
        [call.name for step in steps for call in step.calls], [step.agent for step in steps], in_domain, text, tenant)


def drawn(prompt: str, when: float, share: float) -> bool:
    """Whether a question is kept, by the chance `share`: all that is asked about it on one day (UTC) or nothing, so
    that an agent's trajectory is kept with each of its steps, by every process of a server."""
    if share >= 1:
        return True
    day = datetime.fromtimestamp(when, UTC).date().isoformat()
    found = hashlib.sha256(f"{day}\n{prompt}".encode(errors="replace")).digest()[:8]
    return int.from_bytes(found, "big") < share * 2**64


def schema() -> pa.Schema:
    """Of the files."""
    import pyarrow as pa

    texts, floats = pa.list_(pa.string()), pa.list_(pa.float64())
    return pa.schema([
        ("time", pa.float64()), ("source", pa.string()), ("version", pa.string()), ("renderer", pa.int32()),
        ("chance", pa.float64()), ("prompt", pa.string()), ("prefixes", texts), ("scores", floats), ("raw", floats),
        ("lengths", pa.list_(pa.int32())), ("prompt_length", pa.int32()), ("first_error", pa.int32()),
        ("tools", texts), ("agents", texts), ("in_domain", pa.bool_()), ("text", pa.string()),
        ("tenant", pa.string())])


def write(path: Path, samples: Iterable[Sample], about: dict[str, str] | None = None) -> None:
    """Writes a Parquet file, whole or not at all.

    Args:
        about: what is said of all of them, kept in the file's metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([asdict(one) for one in samples], schema=schema().with_metadata(about))
    with store.whole(path) as temporary:
        pq.write_table(table, temporary)


def read(path: Path) -> tuple[list[Sample], dict[str, str]]:
    """What `write` wrote. Raises InputError naming a file that is none of it."""
    table = store.read_table(path)
    # Files of before there were tenants.
    names = [name for name in schema().names if name in table.column_names or name != "tenant"]
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise InputError(f"{path}: holds no samples of served traffic (no column {missing[0]}); take it away")
    about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()
             if not key.startswith(b"ARROW")}
    return [Sample(**row) for row in table.select(names).to_pylist()], about


def files(folder: Path) -> list[tuple[float, Path]]:
    """The sample files of a folder, each with when its first trajectory was answered, the oldest first. Others, such as
    one that is being written, are left alone."""
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            begins = datetime.strptime(path.name.split("-", 1)[0], STAMP).replace(tzinfo=UTC)
        except ValueError:
            continue
        found.append((begins.timestamp(), path))
    return found


@dataclass(frozen=True, slots=True)
class Window:
    """Samples of a time.

    Attributes:
        since, until: seconds since 1970; the time is half-open.
        samples: of it, in order.
        broken: files that could not be read.
    """

    since: float
    until: float
    samples: Sequence[Sample]
    broken: Sequence[str] = ()


def read_window(folder: Path, since: float, until: float, longest: float) -> Window:
    """The samples of a time. A file that cannot be read is named and left out.

    Args:
        longest: seconds that a file may reach beyond its name.
    """
    found, broken = [], []
    for begins, path in files(folder):
        if since - longest - 1 <= begins < until:
            try:
                found += [one for one in read(path)[0] if since <= one.time < until]
            except InputError as error:
                log.warning("left out: %s", error)
                broken.append(path.name)
    return Window(since, until, sorted(found, key=lambda one: one.time), broken)


def independent(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """One trajectory a question, drawn at random among those that no later request went on with; in the order given.

    Trajectories of one question are alike, and an agent that asks after each step sends its trajectory many times:
    neither are draws of their own, which is what a comparison of distributions counts. One that came up several times
    is as likely as that: among different ones, what a policy seldom writes would be as frequent as what it mostly does.
    """
    went_on = {prefix for one in samples for prefix in one.prefixes[:-1]}
    found: dict[str, list[int]] = {}
    for row, one in enumerate(samples):
        if one.prefixes and one.prefixes[-1] not in went_on:
            found.setdefault(one.prompt, []).append(row)
    rng = random.Random(f"one a question/{seed}")
    return [samples[row] for row in sorted(rng.choice(rows) for rows in found.values())]


def first_of_each(samples: Iterable[Sample]) -> list[Sample]:
    """The first trajectory of each question, of draws that are all whole."""
    found: dict[str, Sample] = {}
    for one in samples:
        found.setdefault(one.prompt, one)
    return list(found.values())

"""Have the labels changed since the last run: how verdicts, values and confidence are distributed, how far two runs'
distributions lie apart, and which run to compare with. Whether that is too far is validation's to say.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.platform import tracking

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

    from prm_core.config import Config

log = logging.getLogger(__name__)

# The artifact of a validate run that the next one compares with.
FILE = "label_distribution.json"
# Raised when what the file holds changes; files of other formats are not compared with.
FORMAT = 1
BINS = 10
VERDICTS = ("right", "wrong", "none")
# Finished runs looked into before giving up, newest first; older ones say little about what changed.
LOOKED_INTO = 20


class StoreUnreachable(Exception):
    """The tracking store does not answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Previous:
    """The run compared with.

    Attributes:
        run_id: MLflow's.
        date: when it started, UTC, to the minute.
        strategies: name → its distribution, as `distributions` makes them.
    """

    run_id: str
    date: str
    strategies: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Shift:
    """How one thing about one strategy's labels differs between two runs.

    Attributes:
        strategy: its name, or merged.
        of: verdicts, values (Jensen-Shannon divergence, 0 to 1) or confidence (difference of means, -1 to 1).
        amount: the divergence or the difference, now minus before.
        chance: the divergence that sampling alone would give on average, None for confidence.
    """

    strategy: str
    of: str
    amount: float
    chance: float | None

    @property
    def figure(self) -> str:
        """Its name among the figures."""
        return f"drift/{self.strategy}/{self.of}"


@dataclass(frozen=True, slots=True)
class Drift:
    """A comparison with the previous run, or why there is none.

    Attributes:
        previous: the run compared with, None when nothing was compared.
        reason: why nothing was compared, empty otherwise.
        shifts: by strategy.
        only_now, only_before: strategies that only one of the two runs has.
    """

    previous: Previous | None = None
    reason: str = ""
    shifts: Sequence[Shift] = ()
    only_now: Sequence[str] = ()
    only_before: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """As result.json holds it."""
        if self.previous is None:
            return {"compared": False, "reason": self.reason}
        return {
            "compared": True, "run_id": self.previous.run_id, "date": self.previous.date,
            "shifts": {s.figure: s.amount for s in self.shifts},
            "chance": {s.figure: s.chance for s in self.shifts if s.chance is not None},
            "only_now": list(self.only_now), "only_before": list(self.only_before),
        }


def jensen_shannon(a: Sequence[float], b: Sequence[float]) -> float:
    """Jensen-Shannon divergence of two count vectors, base 2: 0 for equal shares, 1 for disjoint ones.

    JS(P, Q) = KL(P‖M)/2 + KL(Q‖M)/2 with M = (P + Q)/2. Unlike the population stability index it is symmetric, needs
    no floor under empty bins, and is bounded. For scale: shares of right verdicts of 0.9 and then 0.7 give 0.047.

    Raises ValueError when a vector has no count.

    Source: Lin 1991, "Divergence measures based on the Shannon entropy".
    """
    import numpy as np
    from scipy.special import rel_entr

    p, q = (np.asarray(counts, dtype=float) for counts in (a, b))
    if not p.sum() or not q.sum():
        raise ValueError("a distribution without any count has no divergence")
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    nats = (rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / 2
    # Rounding may leave it outside by 1e-17.
    return float(min(max(nats / math.log(2), 0.0), 1.0))


def expected_by_chance(a: Sequence[float], b: Sequence[float]) -> float:
    """About the mean Jensen-Shannon divergence (base 2) of two samples of these sizes from one distribution.

    (k - 1)(1/n + 1/m) / (8 ln 2) with k occupied bins: the divergence's second-order expansion, for independent
    counts. Steps of one chain are not independent, so it is a floor.
    """
    occupied = sum(x > 0 or y > 0 for x, y in zip(a, b, strict=True))
    return (occupied - 1) * (1 / sum(a) + 1 / sum(b)) / (8 * math.log(2))


def distributions(labels: pd.DataFrame, merged: pd.DataFrame, strategies: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each strategy's labels and the merged ones are distributed.

    Returns name → {"verdicts": counts of right, wrong, none; "values": counts in ten equal bins of [0, 1], the last
    closed; "mean_confidence": over rows with a verdict, None without any}; strategies without rows are left out.
    """
    import numpy as np

    tables = {name: labels[labels["strategy"] == name] for name in strategies} | {"merged": merged}
    found = {}
    for name, rows in tables.items():
        if rows.empty:
            continue
        decided = rows[rows["is_correct"].notna()]
        right = int(decided["is_correct"].astype(bool).sum())
        counts, _ = np.histogram(rows["value"].dropna().astype(float), bins=BINS, range=(0, 1))
        found[name] = {
            "verdicts": [right, len(decided) - right, len(rows) - len(decided)],
            "values": [int(count) for count in counts],
            "mean_confidence": float(decided["confidence"].mean()) if len(decided) else None,
        }
    return found


def compare(now: Mapping[str, Mapping[str, Any]], previous: Previous) -> Drift:
    """The shifts of every strategy that both runs have, in what both have: a strategy without any value, or without
    any verdict, has no distribution of values or no confidence to compare."""
    before, shifts = previous.strategies, []
    for name in now:
        if name not in before:
            continue
        for of in ("verdicts", "values"):
            a, b = before[name][of], now[name][of]
            if sum(a) and sum(b):
                shifts.append(Shift(name, of, jensen_shannon(a, b), expected_by_chance(a, b)))
        a, b = before[name]["mean_confidence"], now[name]["mean_confidence"]
        if a is not None and b is not None:
            shifts.append(Shift(name, "confidence", b - a, None))
    return Drift(previous, "", shifts, [n for n in now if n not in before], [n for n in before if n not in now])


def record(
    strategies: Mapping[str, Mapping[str, Any]], config: Config, labels_digest: str, passed: bool
) -> dict[str, Any]:
    """What a run leaves for the next to compare with (FILE).

    Args:
        strategies: from `distributions`.
        labels_digest: of the label files, to know the same labels again.
        passed: whether no critical expectation failed.
    """
    return {"format": FORMAT, "domain": config.domain, "labels": labels_digest, "passed": passed,
            "verdicts": VERDICTS, "value_bins": BINS, "strategies": strategies}


def find_previous(workspace: Path, config: Config, labels_digest: str) -> Previous | str:
    """The last finished validate run of this profile and domain whose labels passed and are not these very labels.

    Labels that the gate refused are no standard, and a second look at the same labels must find what the first
    found, not compare them with themselves.

    Returns the reason where there is no such run. Raises StoreUnreachable when the store does not answer.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if not tracking.store_exists(workspace):
        return "first run: no earlier run is recorded in this workspace"
    looked, refused, same = 0, 0, 0
    try:
        client = tracking.connect(workspace)
        for run in _finished_runs(client, config.profile):
            found = _read(client, run)
            looked += 1
            if found is not None and (found.get("format"), found.get("domain")) == (FORMAT, config.domain):
                if found["labels"] == labels_digest:
                    same += 1
                elif not found["passed"]:
                    refused += 1
                else:
                    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
                    return Previous(run.info.run_id, f"{started:%Y-%m-%d %H:%M} UTC", found["strategies"])
            if looked == LOOKED_INTO:
                break
    except (MlflowException, SQLAlchemyError, InputError, OSError) as error:
        raise StoreUnreachable(str(error).splitlines()[0] if str(error) else repr(error)) from error
    return (f"first run: none of the last {looked} finished validate runs of profile {config.profile} has other labels "
            f"of domain {config.domain} that passed ({same} with these very labels, {refused} refused)")


def _finished_runs(client: MlflowClient, profile: str) -> Iterator[Run]:
    """Newest end first, page by page."""
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    token: str | None = None
    while experiment is not None:
        page = client.search_runs(
            [experiment.experiment_id], "tags.stage = 'validate' and attributes.status = 'FINISHED'", max_results=50,
            order_by=["attributes.end_time DESC"], page_token=token)
        # Here and not in the filter, whose quoting a profile's name might break.
        yield from (run for run in page if run.data.tags.get("profile") == profile)
        token = page.token
        if not token:
            return


def _read(client: MlflowClient, run: Run) -> dict[str, Any] | None:
    """A run's distribution file; None where it left none (runs before there were any), or one that cannot be read."""
    run_id = run.info.run_id
    if not any(entry.path == FILE for entry in client.list_artifacts(run_id)):
        return None
    with tempfile.TemporaryDirectory(prefix="prm-drift-") as folder:
        path = Path(client.download_artifacts(run_id, FILE, folder))
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
    if isinstance(found, dict):
        return found
    log.warning("run %s: its %s is not a JSON object; it is passed over", run_id, FILE)
    return None

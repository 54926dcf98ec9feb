"""One pass over MLflow's traces: those a filter finds that lack their step scores are judged, in batches.

What a trace is given is in trace_judge.py, the command in `prm_core/cli/scoring`, the schedule in flows/judge.py.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.errors import InputError
from prm_core.formats.mlflow_traces import RUNNING
from prm_core.models.loading import first_line
from prm_core.platform import tracking
from prm_core.platform.progress import some, track
from prm_core.platform.tracking import reachable
from prm_core.platform.workspace import JUDGE_LOCK, exclusive
from prm_core.serving.service import ScoringAnswer, ScoringRequest
from prm_core.serving.trace_judge import Judge, read, standing

if TYPE_CHECKING:
    from mlflow.entities import Trace, TraceInfo
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

# Traces that a search answers at once, and that a pass of the model scores.
PAGE, BATCH = 500, 64


@dataclass(frozen=True, slots=True)
class Selection:
    """Which traces.

    Attributes:
        experiments: names.
        filter: as `mlflow.search_traces` takes it; empty for all.
        since: Unix time in ms: those that began then or later; None for all.
        limit: most traces to judge, the newest first; None for all. Those that have their scores do not count.
        ended: Unix time in ms: those that ended later wait, since spans of other processes may still be on their way;
            None for none.
    """

    experiments: Sequence[str]
    filter: str = ""
    since: int | None = None
    limit: int | None = None
    ended: int | None = None

    def is_open(self, info: TraceInfo) -> bool:
        """Whether a trace is still running, or ended too late."""
        end = info.request_time + (info.execution_duration or 0)
        return info.state.value == RUNNING or (self.ended is not None and end > self.ended)

    @property
    def filter_string(self) -> str:
        """Filter and time in MLflow's language."""
        since = "" if self.since is None else f"attributes.timestamp_ms >= {self.since}"
        return " AND ".join(part for part in (self.filter.strip(), since) if part)


@dataclass(slots=True)
class Outcome:
    """What became of the traces that were found.

    Attributes:
        found: how many match; of them `running` are not finished, or not for long enough, and `whole` have all their
            scores.
        judged: traces scored; `written` scores of steps were logged, and `removed` taken away: of another version of
            the model, or there twice.
        broken: steps that break a rule, for each rule, that were marked.
        corrected: scores that somebody corrected, left as they are.
        beyond: steps that did not fit the model's context and have no score.
        strange: traces unlike what the model was trained on.
        noted: what was left out in reading traces, by reason.
        failed: a line for each trace that could not be judged.
    """

    found: int = 0
    running: int = 0
    whole: int = 0
    judged: int = 0
    written: int = 0
    removed: int = 0
    broken: int = 0
    corrected: int = 0
    beyond: int = 0
    strange: int = 0
    noted: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def fail(self, line: str) -> None:
        """Names a trace that could not be judged."""
        log.warning("%s", line)
        self.failed.append(line)

    def __str__(self) -> str:
        if not self.found:
            return "no trace matches"
        rest = {"broken rules marked": self.broken, "earlier scores removed": self.removed,
                "traces not ended, or just, left for later": self.running,
                "traces that could not be judged": len(self.failed),
                "traces unlike what the model was trained on": self.strange,
                "scores that somebody corrected, left as they are": self.corrected,
                "steps beyond the model's context": self.beyond, **self.noted}
        return "; ".join([f"{self.found:,} traces match, {self.whole:,} had their scores, {self.judged:,} were judged, "
                          f"{self.written:,} steps scored",
                          *(f"{what}: {count:,}" for what, count in rest.items() if count)])


def judge_traces(judge: Judge, selection: Selection, workspace: Path) -> Outcome:
    """Scores the selected traces that lack their scores, and logs them.

    A trace that has them is known by its assessments alone: neither its spans nor the model are loaded. What was
    written stays where the pass is stopped, and the next one goes on from there. A trace that cannot be judged is named
    in the log and in the outcome.

    Raises:
        InputError: no such experiment, or a filter that MLflow does not take.
        InUse: another pass is at work in the workspace; the two would give what is missing twice.
        Unreachable: the store does not answer, or does not any more.
    """
    with exclusive(workspace, lock=JUDGE_LOCK):
        return _Pass(judge, selection, workspace).run()


class _Pass:
    def __init__(self, judge: Judge, selection: Selection, workspace: Path) -> None:
        self.judge, self.selection, self.workspace = judge, selection, workspace
        self.client: MlflowClient = tracking.connect(workspace)
        tracking.use_store(workspace)
        self.locations = [self.experiment(name) for name in selection.experiments]
        self.outcome = Outcome()

    def run(self) -> Outcome:
        waiting = self.waiting()
        if waiting:
            for answered in track(self.answered(waiting), "judging", total=len(waiting), unit="trace"):
                if answered is not None:
                    self.write(*answered)
        return self.outcome

    def experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            known = [one.name for one in self.client.search_experiments(max_results=100)]
            raise InputError(f"--experiment {name}: {tracking.tracking_uri(self.workspace)} has no such one, but "
                             f"{some(known, 20)}")
        return found.experiment_id

    def waiting(self) -> list[str]:
        """Ids of the finished traces that lack scores, the newest first.

        All before the first is judged, and no more than ids: however many match fit the memory, and a filter may ask
        for the very scores that change what it finds.
        """
        from mlflow.exceptions import MlflowException

        waiting: list[str] = []
        # A new trace moves one of a page on to the next.
        seen: set[str] = set()
        try:
            for info in track(self.infos(), "searching", unit="trace"):
                if info.trace_id in seen:
                    continue
                seen.add(info.trace_id)
                self.outcome.found += 1
                if self.selection.is_open(info):
                    self.outcome.running += 1
                elif standing(info.assessments, self.judge.name, self.judge.source).whole:
                    self.outcome.whole += 1
                else:
                    waiting.append(info.trace_id)
                    if len(waiting) == self.selection.limit:
                        break
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise InputError(f"--filter {self.selection.filter!r}: MLflow says {first_line(error)!r}; give what "
                             "mlflow.search_traces takes, such as \"tags.team = 'a' AND attributes.status = 'OK'\""
                             ) from None
        return waiting

    def infos(self) -> Iterator[TraceInfo]:
        token = None
        while True:
            page = self.client.search_traces(
                locations=self.locations, filter_string=self.selection.filter_string, max_results=PAGE,
                order_by=["timestamp_ms DESC"], page_token=token, include_spans=False)
            yield from (trace.info for trace in page)
            token = page.token
            if not token:
                return

    def answered(self, waiting: Sequence[str]) -> Iterator[tuple[Trace, ScoringRequest, ScoringAnswer] | None]:
        """Of each trace, batch by batch, what the model says; None of one that it says nothing of."""
        for start in range(0, len(waiting), BATCH):
            ids = waiting[start : start + BATCH]
            requests = []
            for trace in self.load(ids):
                try:
                    request = read(trace, self.outcome.noted)
                except InputError as error:
                    self.outcome.fail(str(error))
                    continue
                if request is not None:
                    requests.append((trace, request))
            answers = self.judge.score([request for _, request in requests])
            yield from [None] * (len(ids) - len(requests))
            for (trace, request), answer in zip(requests, answers, strict=True):
                if isinstance(answer, InputError):
                    self.outcome.fail(str(answer))
                    yield None
                else:
                    yield trace, request, answer

    def load(self, ids: Sequence[str]) -> list[Trace]:
        """Traces with their spans, and their assessments as they are now."""
        listed = ", ".join(f"'{one}'" for one in ids)
        try:
            found = self.client.search_traces(
                locations=self.locations, filter_string=f"attributes.request_id IN ({listed})", max_results=len(ids))
        except Exception as error:
            reachable.check(tracking.tracking_uri(self.workspace), again=True)
            if len(ids) > 1:
                # One that MLflow cannot read costs all that were asked for with it.
                return [trace for one in ids for trace in self.load([one])]
            self.outcome.fail(f"trace {ids[0]}: MLflow cannot read its spans ({first_line(error)})")
            return []
        for one in sorted(set(ids) - {trace.info.trace_id for trace in found}):
            self.outcome.fail(f"trace {one}: MLflow has not all its spans, or it was deleted meanwhile")
        return list(found)

    def write(self, trace: Trace, request: ScoringRequest, answer: ScoringAnswer) -> None:
        from mlflow.exceptions import MlflowException

        assert answer.analysis is not None
        try:
            counts = self.judge.write(trace, request, answer.analysis)
        except MlflowException as error:
            reachable.check(tracking.tracking_uri(self.workspace), again=True)
            self.outcome.fail(f"{request.where}: MLflow does not take its scores ({first_line(error)})")
            return
        self.outcome.judged += 1
        self.outcome.written += counts["written"]
        self.outcome.removed += counts["removed"]
        self.outcome.broken += counts["broken"]
        self.outcome.corrected += counts["corrected"]
        self.outcome.beyond += answer.truncated_steps
        self.outcome.strange += answer.analysis.in_domain is False

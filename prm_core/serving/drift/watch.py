"""What a server notices of its own traffic, in one place: it keeps samples, and knows whether its calibration is stale.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from prm_core.config import DriftConfig
from prm_core.errors import InputError
from prm_core.serving.drift.outcomes import Outcome, tell
from prm_core.serving.drift.recorder import Draft, Recorder
from prm_core.serving.drift.samples import Sample, drawn, sample
from prm_core.serving.drift.trust import Doubt, Trust
from prm_core.serving.drift.withdrawn import FILE
from prm_core.serving.metrics import Metrics
from prm_core.serving.service import ScoringAnswer, ScoringRequest, ScoringService

SAMPLES = "samples"


class Answering(Protocol):
    """What of a served model is noted beside its answers: `http.asked.Served`."""

    @property
    def service(self) -> ScoringService: ...

    @property
    def defaults(self) -> Mapping[str, Any]: ...

    @property
    def source(self) -> str: ...

    @property
    def calibrated(self) -> float | None: ...


class Watch:
    """Safe to call from many threads; none of it waits, but for `told`.

    Args:
        workspace: whose folder `drift.folder` holds samples and alarms.
        config: what is kept, and when a calibration is stale.
        metrics: where it is counted.
        clock: seconds since 1970.
    """

    def __init__(
        self, workspace: Path, config: DriftConfig, metrics: Metrics, clock: Callable[[], float] = time.time
    ) -> None:
        folder = self._folder = workspace / config.folder
        self._config, self._metrics, self._clock = config, metrics, clock
        self._stamp: tuple[int, ...] | None = None
        self._recorder = Recorder(folder / SAMPLES, config, clock)
        self._trust = Trust(folder, config.max_age_days, clock)

    def keep(
        self, served: Answering, requests: Sequence[ScoringRequest], answers: Sequence[ScoringAnswer], tenant: str = ""
    ) -> None:
        """Keeps what was answered of questions that are drawn.

        Args:
            tenant: who asked.
        """
        share, now = self._config.sample, self._clock()
        drafts: list[Draft] = [
            partial(_sample, request, answer, now, served, self._config, tenant) for request, answer in
            zip(requests, answers, strict=True) if share and answer.analysis and drawn(request.prompt, now, share)]
        if drafts:
            kept = self._recorder.offer(drafts)
            self._metrics.sampled(len(drafts), kept)

    def doubt(self, served: Answering) -> Doubt | None:
        """Why the calibration of what is served is stale, None while it is not; counted as it is told."""
        doubt = self._trust.doubt(served.service.version, served.calibrated)
        self._metrics.trusted(doubt is None)
        return doubt

    def withdrawn(self) -> bool:
        """Whether data was withdrawn since this was asked last, so that nothing in memory may hold it any longer."""
        path = self._folder / FILE
        try:
            found = path.stat()
            stamp: tuple[int, ...] | None = (found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError:
            stamp = None
        before, self._stamp = self._stamp, stamp
        return before != stamp

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock()

    def told(self, outcomes: Sequence[Outcome]) -> None:
        """Notes how trajectories have ended; it waits for the disk. Raises OSError where they cannot be noted."""
        try:
            tell(self._folder, outcomes)
        except InputError as error:
            # Of a file of ours, and no fault of who tells.
            raise OSError(str(error)) from error

    def close(self) -> None:
        """Writes what was kept."""
        self._recorder.close()


def _sample(
    request: ScoringRequest, answer: ScoringAnswer, now: float, served: Answering, config: DriftConfig, tenant: str
) -> Sample:
    said = answer.analysis
    assert said is not None
    return sample(request.prompt, request.steps, said.step_scores, time=now, threshold=served.defaults["threshold"],
                  renderer=served.service.encoding.renderer, source=served.source, version=answer.version,
                  chance=config.sample, raw=answer.raw_scores, in_domain=said.in_domain, texts=config.texts,
                  tenant=tenant)

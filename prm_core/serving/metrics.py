"""What a server tells Prometheus: the figures that dashboards of vLLM know, with the prefix `prm:`, and what a reward
model has to say besides.

The HTTP edge (`http/`) counts requests; the service and its engine say what they do, as to any observer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from prm_core.serving.engine.observer import Observer

# A time beside every counter, which nobody asks for.
disable_created_metrics()

# Where several worker processes leave what they count; prometheus_client reads it when it is imported.
SHARED = "PROMETHEUS_MULTIPROC_DIR"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SCORES = tuple(share / 20 for share in range(1, 21))
POSITIONS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233)
STEPS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 500, 1000)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class Metrics(Observer):
    """One server's figures, each an object of prometheus_client; names and labels are those of vLLM where it has them.

    Args:
        model_name: label of all of them.
        calibrated: when the served model was calibrated, seconds since 1970; None where that is not known.
    """

    def __init__(self, model_name: str, calibrated: float | None = None) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"prm:{name}", told, ["model_name", *labels], registry=self._registry)

        def gauge(name: str, told: str, mode: str = "livesum") -> Gauge:
            made = Gauge(f"prm:{name}", told, ["model_name"], registry=self._registry, multiprocess_mode=mode)
            return made.labels(model_name)

        def histogram(name: str, told: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"prm:{name}", told, ["model_name", *labels], registry=self._registry, buckets=buckets)

        # Of the HTTP edge.
        self._requests = counter("request_success", "Requests answered with 200.", "path", "finished_reason")
        self._refused = counter("request_refused", "Requests answered with 4xx or 5xx.", "path", "status")
        self._seconds = histogram("e2e_request_latency_seconds", "Seconds from a request's head to its answer.",
                                  SECONDS, "path")
        self._running = gauge("num_requests_running", "Requests that the model is at.")
        self._waiting = gauge("num_requests_waiting", "Requests that wait for the model.")
        self._rejected = counter("admission_rejections", "Requests refused with 503.", "reason")
        self._queue_seconds = histogram("request_queue_time_seconds", "Seconds a request waits for the model.",
                                       SECONDS).labels(model_name)
        # Of what is said of trajectories.
        self._step_scores = histogram("step_score", "Calibrated scores of steps.", SCORES).labels(model_name)
        self._first_errors = histogram("first_error_position", "Index of the first step judged wrong, of the "
                                       "trajectories that have one.", POSITIONS).labels(model_name)
        self._lengths = histogram("trajectory_steps", "Steps of a trajectory.", STEPS).labels(model_name)
        self._verdicts = counter("trajectories", "Trajectories by what is said of them: clean, error, out_of_domain.",
                                 "verdict")
        self._alarms = counter("alarms", "Trajectories whose stopping alarm is raised.").labels(model_name)
        # Of rules, where the server holds steps to any.
        self._broken = counter("rule_violations", "Steps that break a rule, by its id and severity.", "rule",
                               "severity")
        self._blocked = counter("trajectories_blocked", "Trajectories in which a broken rule blocks."
                                ).labels(model_name)
        self._calibrated = calibrated
        self._age = gauge("calibration_age_seconds", "Seconds since the served model was calibrated.", "livemax")
        self._stale = gauge("calibration_stale", "1 where the served model's calibration is too old or its traffic has "
                            "drifted, else 0.", "livemax")
        self._samples = counter("drift_samples", "Trajectories drawn for samples of traffic: kept, dropped.", "outcome")
        # Of the service and its engine.
        self._prompt_tokens = counter("prompt_tokens", "Tokens of the trajectories that were scored."
                                      ).labels(model_name)
        self._request_prompt_tokens = histogram("request_prompt_tokens", "Tokens of a scored trajectory.",
                                               TOKENS).labels(model_name)
        self._batch_tokens = histogram("iteration_tokens", "Tokens of one pass of the model.",
                                       TOKENS).labels(model_name)
        self._inference_seconds = histogram("request_inference_time_seconds", "Seconds of one pass of the model.",
                                           SECONDS).labels(model_name)
        self._prefix_queries = counter("prefix_cache_queries", "Tokens looked up among kept prefixes."
                                      ).labels(model_name)
        self._prefix_hits = counter("prefix_cache_hits", "Of these, those found.").labels(model_name)
        self._result_queries = counter("result_cache_queries", "Trajectories looked up among kept scores."
                                      ).labels(model_name)
        self._result_hits = counter("result_cache_hits", "Of these, those found.").labels(model_name)
        self._kv_usage = gauge("kv_cache_usage_perc", "Share of the bytes for kept prefixes that is used, 0 to 1.",
                              "livemax")
        # Of versions that take over.
        self._swaps = counter("model_swaps", "Versions that were to take over, by what came of it: done, not_loaded, "
                              "not_passed.", "outcome")
        self._registry_failures = counter("registry_failures", "Looks at the registry that it did not answer."
                                          ).labels(model_name)
        self._alert = gauge("model_swap_alert", "1 where the alias points to a version that is not served.", "livemax")
        self._difference = gauge("shadow_score_difference", "Mean difference of the last new version's scores of "
                                 "recent trajectories from those that were given.", "livemax")
        self._changed = gauge("shadow_verdicts_changed", "Share of their steps that it calls right instead of wrong, "
                              "or the other way round.", "livemax")

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request that was answered, whatever the answer."""
        if status == 200:
            self._requests.labels(self._model_name, path, "stop").inc()
        else:
            self._refused.labels(self._model_name, path, str(status)).inc()
        self._seconds.labels(self._model_name, path).observe(seconds)

    def rejected(self, reason: str) -> None:
        """A request that was refused with 503: `queue_full`, `deadline`, `draining`."""
        self._rejected.labels(self._model_name, reason).inc()

    def judged(
        self, step_scores: Sequence[float], first_error: int, out_of_domain: bool, alarm: bool,
        broken: Sequence[tuple[str, str]] = (), blocked: bool = False,
    ) -> None:
        """What was said of a trajectory.

        Args:
            first_error: -1 where no step was judged wrong.
            broken: id and severity of each rule that a step breaks, of every such step.
            blocked: whether one of them blocks.
        """
        for score in step_scores:
            self._step_scores.observe(score)
        self._lengths.observe(len(step_scores))
        if first_error >= 0:
            self._first_errors.observe(first_error)
        verdict = "out_of_domain" if out_of_domain else "error" if first_error >= 0 else "clean"
        self._verdicts.labels(self._model_name, verdict).inc()
        if alarm:
            self._alarms.inc()
        for rule, severity in broken:
            self._broken.labels(self._model_name, rule, severity).inc()
        if blocked:
            self._blocked.inc()

    def serves(self, calibrated: float | None) -> None:
        """Another version answers from now on; `calibrated` as of the first one."""
        self._calibrated = calibrated

    def swapped(self, outcome: str) -> None:
        """What came of a version that was to take over: `done`, `not_loaded`, `not_passed`."""
        self._swaps.labels(self._model_name, outcome).inc()

    def compared(self, difference: float, changed: float) -> None:
        """How a new version's scores of recent trajectories differ, on average, and what share of verdicts changed."""
        self._difference.set(difference)
        self._changed.set(changed)

    def alerted(self, alert: bool) -> None:
        """Whether the alias points to a version that is not served."""
        self._alert.set(alert)

    def registry_failed(self) -> None:
        """The registry did not say where the alias points."""
        self._registry_failures.inc()

    def sampled(self, count: int, kept: bool) -> None:
        """Trajectories that were drawn for a sample of traffic, and whether there was room for them."""
        self._samples.labels(self._model_name, "kept" if kept else "dropped").inc(count)

    def trusted(self, yes: bool) -> None:
        """Whether the calibration of what is served may be relied upon."""
        self._stale.set(not yes)

    def queued(self, running: int, waiting: int) -> None:
        self._running.set(running)
        self._waiting.set(waiting)

    def begun(self, seconds: float) -> None:
        self._queue_seconds.observe(seconds)

    def passed(self, tokens: int, seconds: float, usage: float) -> None:
        self._batch_tokens.observe(tokens)
        self._inference_seconds.observe(seconds)
        self._kv_usage.set(usage)

    def scored(self, tokens: int, known: int) -> None:
        self._prompt_tokens.inc(tokens)
        self._request_prompt_tokens.observe(tokens)
        self._prefix_queries.inc(tokens)
        self._prefix_hits.inc(known)

    def looked_up(self, asked: int, found: int) -> None:
        self._result_queries.inc(asked)
        self._result_hits.inc(found)

    def render(self) -> bytes:
        """All of it in Prometheus's text format; of every worker process where there are several."""
        if self._calibrated is not None:
            self._age.set(time.time() - self._calibrated)
        if SHARED not in os.environ:
            return generate_latest(self._registry)
        _forget_ended(Path(os.environ[SHARED]))
        shared = CollectorRegistry()
        MultiProcessCollector(shared)
        return generate_latest(shared)


def _forget_ended(shared: Path) -> None:
    """Has worker processes that have ended count no more in what is so now; what they have counted stays."""
    for number in {file.stem.rpartition("_")[2] for file in shared.glob("gauge_live*.db")}:
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            mark_process_dead(int(number), str(shared))

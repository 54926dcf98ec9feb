"""A reward model as a judge of MLflow traces: a trace read as a chain, its steps scored, and every score logged as
feedback on the very span it is about.

What spans mean is in prm_core/formats/mlflow_traces.py; which traces are judged, in trace_pass.py.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.errors import InputError
from prm_core.formats import FORMATS
from prm_core.models.loading import model_version
from prm_core.platform import store
from prm_core.scoring.foreign import load_any_scorer
from prm_core.scoring.scorer import CALIBRATOR_FILE, LoadedScorer
from prm_core.serving import model_registry
from prm_core.serving.analysis import TrajectoryAnalysis
from prm_core.serving.cache import ScoreCache
from prm_core.serving.rules import rules_of, write_feedback
from prm_core.serving.service import ScoringAnswer, ScoringRequest, ScoringService, checked_request

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Trace

NAME = "prm_step"
CHAMPION = "models:/prm@champion"
# Metadata by which feedback of ours is known.
STEP, SCORED, VERSION = "step_index", "scored_steps", "model_version"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a trace's assessments say about our feedback on its steps; each by span id.

    Attributes:
        given: that of the model asked about.
        stale: ids of what is to go: that of another model of ours, and what is there twice.
        corrected: what somebody overrode or edited: a person's word by now, which stays.
    """

    given: Mapping[str, Assessment]
    stale: Mapping[str, Sequence[str]]
    corrected: Mapping[str, Assessment]

    @property
    def whole(self) -> bool:
        """Whether every step that the model can score has its feedback, and nothing is stale."""
        scored = {one.metadata[SCORED] for one in (self.given or self.corrected).values()}
        return not self.stale and scored == {str(len({*self.given, *self.corrected}))}


def standing(assessments: Iterable[Assessment], name: str, source: str) -> Standing:
    """Reads a trace's assessments.

    Args:
        name: of our feedback.
        source: the model's; see `Judge`.
    """
    listed = list(assessments)
    overridden = {one.overrides for one in listed if one.overrides}
    given: dict[str, Assessment] = {}
    corrected: dict[str, Assessment] = {}
    stale: dict[str, list[str]] = {}
    for one in listed:
        # Whoever else uses the name has other metadata, and people are no code.
        if (one.name != name or one.source.source_type != "CODE"
                or not {STEP, SCORED, VERSION} <= set(one.metadata or {})):
            continue
        span = one.span_id or ""
        if one.assessment_id in overridden or one.last_update_time_ms != one.create_time_ms:
            corrected[span] = one
        elif one.source.source_id == source and span not in given:
            given[span] = one
        else:
            stale.setdefault(span, []).append(one.assessment_id)
    return Standing(given, stale, corrected)


class Judge:
    """A reward model that scores traces and signs what it says.

    It is loaded when the first trace needs it, so that a pass with nothing to do costs a search. Safe to call from many
    threads.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/ID/PATH` or a folder.
        workspace: whose store knows the model and the traces, and whose rules steps are held to too.
        name: of the feedback.
        aggregate: how step scores make the trace's (`AGGREGATIONS`).

    Attributes:
        source: the feedback's source id: `models:/NAME/VERSION` whatever alias named it, `FOLDER@DIGEST` of a folder,
            else the URI; with rules and `+rules@VERSION`, so that other rules judge anew. Feedback of the same source
            is not given twice, that of another is replaced.

    Raises InputError for a model that is not there.
    """

    def __init__(self, model: str = CHAMPION, workspace: Path = Path("."), name: str = NAME, aggregate: str = "min"
                 ) -> None:
        self.name, self.aggregate = name, aggregate
        self._workspace = workspace
        self._model = model_registry.pinned(model, workspace)
        self.source = self._model
        if not model.startswith(model_registry.SCHEMES):
            folder = model_registry.reward_model_folder(model, workspace)
            self.source = f"{folder.resolve().name}@{model_version(str(folder))}"
        self._overseer = rules_of(workspace)
        if self._overseer is not None:
            self.source = f"{self.source}+rules@{self._overseer.constitution.version}"
        self._service: ScoringService | None = None
        self._about: dict[str, str] = {}
        self._loading = threading.Lock()

    def load(self) -> ScoringService:
        """The loaded model. Raises InputError where it cannot be loaded, or has no step scores."""
        with self._loading:
            if self._service is None:
                folder = model_registry.reward_model_folder(self._model, self._workspace)
                scorer = load_any_scorer(folder)
                self._about = {VERSION: scorer.version, **_about(scorer, folder)}
                self._service = ScoringService(scorer, ScoreCache(0, 1.0))
            return self._service

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringAnswer | InputError]:
        """An answer each, in order, or why there is none; steps that do not fit the context are left out."""
        if not requests:
            return []
        service = self.load()
        try:
            answers = service.answer(requests, threshold=0.5, aggregate=self.aggregate, truncate=True)
        except InputError as error:
            # One that the encoder refuses does not keep the others of its batch from their scores.
            return [error] if len(requests) == 1 else [self.score([request])[0] for request in requests]
        return [answer if answer.analysis else
                InputError(f"{request.where}: the model's context has no room for its first step")
                for request, answer in zip(requests, answers, strict=True)]

    def write(self, trace: Trace, request: ScoringRequest, analysis: TrajectoryAnalysis) -> Counter[str]:
        """Has the trace hold this model's feedback on every scored step, once. Counts what it does: `written`,
        `removed` (of another version, or there twice) and `corrected` (by somebody, and left as it is).

        The value is the calibrated probability that the step is right. The metadata are texts: `step_index` from 0,
        `scored_steps`, `model_version` (digest of weights and calibrator), `renderer` (how turns become text),
        `calibration` (digest of the calibrator), and of a model with a committee `reliability` and the interval `low`
        to `high`: the score ± 1.96 standard deviations of what the members say, cut at 0 and 1. They were fitted on
        other draws of the training problems, so that it says how far another training would move the score, and
        nothing of how well the scores are calibrated. Of a trace unlike what the model was trained on, `in_domain` is
        `false` and the rationale says why.

        What is stale of a step goes before the new comes, so that at no moment there are two. With rules, each span
        that breaks one gets feedback `rule/ID` too (`serving/rules.py`), before the scores: a trace with its scores is
        taken for done. They count as `broken`.
        """
        import mlflow
        from mlflow.entities import AssessmentSource

        trace_id, stands = trace.info.trace_id, standing(trace.info.assessments, self.name, self.source)
        refs = [step.ref for step in request.steps[: len(analysis.step_scores)]]
        wanted = {ref: self._metadata(index, analysis) for index, ref in enumerate(refs)}
        stale = {span: list(ids) for span, ids in stands.stale.items()}
        kept, counts = set(stands.corrected), Counter({"corrected": len(stands.corrected)})
        if self._overseer is not None:
            (broken,) = self._overseer.breaks([(request.prompt, request.steps)])
            counts += write_feedback(trace_id, [step.ref for step in request.steps], broken, trace.info.assessments,
                                     self._overseer.constitution.version)
        for span, one in stands.given.items():
            # The trace may have got further spans since.
            if span in wanted and all(one.metadata[key] == wanted[span][key] for key in (STEP, SCORED)):
                kept.add(span)
            else:
                stale.setdefault(span, []).append(one.assessment_id)
        for span in (*wanted, *(set(stale) - set(wanted))):
            for one in stale.get(span, ()):
                mlflow.delete_assessment(trace_id, one)
                counts["removed"] += 1
            if span in wanted and span not in kept:
                mlflow.log_feedback(
                    trace_id=trace_id, span_id=span, name=self.name,
                    value=analysis.step_scores[int(wanted[span][STEP])], metadata=wanted[span],
                    source=AssessmentSource("CODE", self.source), rationale=analysis.out_of_domain)
                counts["written"] += 1
        return counts

    def _metadata(self, index: int, analysis: TrajectoryAnalysis) -> dict[str, str]:
        values = {STEP: str(index), SCORED: str(len(analysis.step_scores)), **self._about}
        if analysis.step_reliabilities and analysis.step_intervals:
            low, high = analysis.step_intervals[index]
            values |= {"reliability": f"{analysis.step_reliabilities[index]:.6g}", "low": f"{low:.6g}",
                       "high": f"{high:.6g}"}
        if analysis.in_domain is not None:
            values["in_domain"] = str(analysis.in_domain).lower()
        return values


def _about(scorer: LoadedScorer, folder: Path) -> dict[str, str]:
    """What else a score depends on; models of other projects say less."""
    renderer, calibrator = getattr(scorer.encoder.config, "renderer", None), folder / CALIBRATOR_FILE
    said = {} if renderer is None else {"renderer": str(renderer)}
    return {**said, "calibration": store.digest(calibrator)[:16]} if calibrator.is_file() else said


def read(trace: Trace, noted: Counter[str]) -> ScoringRequest | None:
    """The trace as a request, its steps' `ref` the spans' ids in hex; None of one without a step to score, counted.

    Raises InputError for what cannot be read, or has no question.
    """
    where = f"trace {trace.info.trace_id}"
    # Without assessments: what others gave as labels is nothing to the model, whatever they hold.
    record = {"info": {"state": trace.info.state.value}, "data": trace.data.to_dict()}
    chain = next(iter(FORMATS["mlflow_trace"].parse([(where, record)], 1.0, noted)), None)
    if chain is None:
        return None
    if not chain.prompt.strip():
        raise InputError(f"{where}: its first call of a model has no message that asks anything, so there is nothing "
                         "to judge its steps by; log the call's input")
    return checked_request(where, chain.asked, chain.steps)

"""Scoring requests: checked, answered from the cache or by one batched pass of the model, analysed.

The HTTP model (pyfunc_model.py) and `prm score` both go through here; nothing in here knows MLflow.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prm_core.config import EngineConfig
from prm_core.errors import InputError
from prm_core.formats.messages import CALLS_WITHOUT_RESULT, SEALED, conversation, tools_text
from prm_core.platform import steps
from prm_core.scoring.conformal import NO_PROMISES, Promises
from prm_core.scoring.scorer import ChainScore, LoadedScorer
from prm_core.search.aggregate import AGGREGATIONS
from prm_core.serving.analysis import TrajectoryAnalysis, analyze, check_parameters, intervals
from prm_core.serving.cache import ScoreCache, context_key
from prm_core.serving.engine.engine import Engine
from prm_core.serving.engine.observer import Observer
from prm_core.serving.engine.requests import RefusedChain, Scored
from prm_core.serving.engine.waiting import in_thread
from prm_core.turns import with_tools, written
from prm_core.types import Step

if TYPE_CHECKING:
    from prm_core.serving.rules import Guard

FIELDS = ("prompt", "steps", "messages", "tools")
# A run that is judged while it goes on ends with calls that nobody has answered yet; and what an agent's service hides
# of its reasoning nobody else can read either.
HARMLESS = (CALLS_WITHOUT_RESULT, SEALED)
ENGINE = EngineConfig()
# Characters of what a client wrote, in an error message.
SHOWN = 80


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """A trajectory to score.

    Attributes:
        where: names it in error messages: `inputs[3]`, `file:line`.
        prompt: the question.
        steps: its steps, in order, none empty (platform/steps.py).
    """

    where: str
    prompt: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class ScoringAnswer:
    """What is said of a trajectory.

    Attributes:
        analysis: of the scored steps, None where the context has no room for the first.
        truncated_steps: trailing steps that did not fit the context.
        version: of the model that says so.
        known_tokens: of the trajectory, that were not computed for this answer; None where its scores were kept, so
            that none was.
        raw_scores: of the analysed steps, before calibration.
    """

    analysis: TrajectoryAnalysis | None
    truncated_steps: int
    version: str
    known_tokens: int | None
    raw_scores: tuple[float, ...] = ()


def parse_request(record: Any, where: str, then: Sequence[Step] = ()) -> ScoringRequest:
    """A request from JSON values: `prompt` and `steps`, or `messages`; and `tools` where some were offered.

    Args:
        then: steps that came after the messages.

    Raises InputError naming `where` and the field at fault; other fields are ignored.
    """
    if isinstance(record, Mapping) and record.get("messages") is not None:
        if record.get("prompt") is not None or record.get("steps") is not None:
            raise InputError(f"{where}: `messages` beside `prompt` or `steps`; give one of them")
        prompt, found = _conversation(record["messages"], where, then)
    elif not isinstance(record, Mapping) or not {"prompt", "steps"} <= set(record):
        raise InputError(f"{where}: expected an object with `prompt` and `steps`, or with `messages`")
    else:
        prompt, found = record["prompt"], steps.parse_steps(record["steps"], where)
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where}: `prompt` is empty or no text; give the question the steps answer")
    return checked_request(where, with_tools(prompt, tools_text(record.get("tools"), where)), found)


def checked_request(where: str, prompt: str, found: tuple[Step, ...]) -> ScoringRequest:
    """A request of these turns. Raises InputError naming `where` for text that no tokenizer takes."""
    try:
        " ".join([prompt, *(text for step in found for text in steps.texts(step))]).encode()
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair, on which tokenizers fail.
        raise InputError(f"{where}: the text is no valid Unicode (half a surrogate pair); correct it") from None
    return ScoringRequest(where, prompt, found)


def _conversation(messages: Any, where: str, then: Sequence[Step]) -> tuple[str, tuple[Step, ...]]:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: `messages` must be a non-empty list of chat messages or Responses items")
    noted = Counter[str]()
    prompt, found = conversation(messages, where, noted).finish()
    lost = {reason: count for reason, count in noted.items() if reason not in HARMLESS}
    if lost:
        # A score of part of a conversation would pass for one of all of it.
        said = "; ".join(f"{reason}: {count}" for reason, count in lost.items())
        raise InputError(f"{where}: `messages` holds what cannot be scored ({said}); take it out")
    if not found and not then:
        raise InputError(f"{where}: `messages` has no turn of the assistant, so there is no step to score")
    return prompt, (*found, *then)


def parse_rows(rows: Any, parse: Callable[[Any, str], ScoringRequest] = parse_request) -> list[ScoringRequest]:
    """The trajectories of an HTTP request, each by `parse`. Raises InputError naming the first row and field at
    fault."""
    if not isinstance(rows, list) or not rows:
        raise InputError("`inputs` must be a list of at least one object with `prompt` and `steps`, or `messages`")
    return [_parse_row(row, f"inputs[{index}]", parse) for index, row in enumerate(rows)]


def _parse_row(row: Any, where: str, parse: Callable[[Any, str], ScoringRequest]) -> ScoringRequest:
    request = parse(row, where)
    strange = sorted(set(row) - set(FIELDS))
    if strange:
        raise InputError(f"{where}: {unknown('field', strange[0], FIELDS)}")
    return request


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What is said of a name that is not known: the nearest one that is, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:SHOWN], names, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name[:SHOWN]!r}; {hint}known: {', '.join(names)}"


def parse_parameters(given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`threshold` and `aggregate` of an HTTP request, those it leaves out from the defaults.

    Raises InputError naming the one at fault.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"`params` must be an object of {' and '.join(defaults)}; leave it out for the defaults")
    strange = sorted(set(given) - set(defaults))
    if strange:
        raise InputError(unknown("parameter", strange[0], defaults))
    values = {**defaults, **given}
    threshold, aggregate = values["threshold"], values["aggregate"]
    # True is an int in Python.
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise InputError("threshold must be a number from 0 to 1; leave it out for the default")
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is {str(threshold)[:20]}, not a probability; give a number from 0 to 1")
    if not isinstance(aggregate, str):
        raise InputError(f"aggregate must be a text, one of {', '.join(AGGREGATIONS)}; leave it out for the default")
    check_parameters(threshold, aggregate[:80])
    return {"threshold": float(threshold), "aggregate": aggregate}


def check_kind(scorer: LoadedScorer) -> None:
    """Raises InputError for a model that scores whole chains, and so has no step scores to answer with."""
    if scorer.kind != "process":
        raise InputError(f"the model is of kind {scorer.kind!r} and has no step scores; name a process one")


class ScoringService:
    """Scores trajectories with one reward model; safe to call from many threads.

    Args:
        scorer: a process reward model.
        cache: where chain scores are kept between requests.
        promises: the alarm and the clean prefix fitted on the model's scores.
        guard: rules that steps are held to beside being right.
        config: what the engine may take of the machine.

    Attributes:
        version: of the model.
        encoding: how it reads chains, and how long ones.

    Raises:
        InputError: the model scores whole chains (an outcome model), so it cannot judge steps.
    """

    def __init__(
        self, scorer: LoadedScorer, cache: ScoreCache, promises: Promises = NO_PROMISES,
        config: EngineConfig = ENGINE, guard: Guard | None = None,
    ) -> None:
        check_kind(scorer)
        self._scorer = scorer
        self.version = scorer.version
        self.encoding = scorer.encoder.config
        self._cache = cache
        self._promises = promises
        self._guard = guard
        self._engine = Engine(scorer, config)

    def report_to(self, observer: Observer) -> None:
        """Has an observer told from now on what the service does."""
        self._engine.observer = observer

    @property
    def has_room(self) -> bool:
        """Whether what is asked now would be taken in."""
        return self._engine.has_room

    @property
    def waits_for_a_judge(self) -> bool:
        """Whether an answer waits for more than the engine: for a judge that a rule asks."""
        return self._guard is not None and self._guard.overseer.judge is not None

    def forget(self) -> None:
        """Drops the scores that are kept."""
        self._cache.clear()

    def close(self) -> None:
        """Takes nothing more in; returns when all that was taken in has its answer."""
        self._engine.close()

    def answer(self, requests: Sequence[ScoringRequest], **parameters: Any) -> list[ScoringAnswer]:
        """What `answering` returns and raises; this thread waits for it."""
        return in_thread(self.answering(requests, **parameters))

    async def answering(
        self, requests: Sequence[ScoringRequest], *, threshold: float, aggregate: str, truncate: bool = False
    ) -> list[ScoringAnswer]:
        """Answers requests, in order; it waits for nothing but the engine (engine/waiting.py), and for a judge where
        `waits_for_a_judge`.

        Args:
            requests: trajectories; equal ones are scored once.
            threshold: a step scoring below it is judged wrong.
            aggregate: name of the aggregation behind `overall_score`.
            truncate: analyse the steps that fit the context instead of refusing a longer chain.

        Raises:
            InputError: naming the request, for a chain longer than the context or a step the encoder refuses; or
                naming a parameter.
            OverloadError: too much waits already, there was no answer in time, or none of a judge.
        """
        check_parameters(threshold, aggregate)
        answers = []
        scored = await self._scores(requests)
        for request, (score, _) in zip(requests, scored, strict=True):
            if score.truncated_steps and not truncate:
                raise InputError(
                    f"{request.where}: the chain is longer than the model's context; its last {score.truncated_steps} "
                    f"of {len(request.steps)} steps do not fit; shorten the prompt or the steps"
                )
        # After what is refused: rules may look at all calls for each call, and ask a judge.
        broken = None if self._guard is None else self._guard.broken([(one.prompt, one.steps) for one in requests])
        for index, (request, (score, known)) in enumerate(zip(requests, scored, strict=True)):
            # Only steps that are judged wrong are quoted.
            texts = [written(step) if value < threshold else ""
                     for step, value in zip(request.steps, score.step_scores, strict=False)]
            analysis = analyze(score.step_scores, texts, threshold=threshold, aggregate=aggregate
                               ) if score.step_scores else None
            if analysis is not None and score.out_of_domain is not None:
                analysis.in_domain, analysis.out_of_domain = not score.out_of_domain, score.out_of_domain or None
            if analysis is not None:
                analysis.outcome_score = score.outcome_score
                if score.reliabilities:
                    analysis.step_reliabilities = list(score.reliabilities)
                    analysis.step_intervals = intervals(score.step_scores, score.reliabilities)
                refs = [step.ref for step in request.steps[: len(score.step_scores)]]
                analysis.step_refs = refs if any(refs) else None
                if not score.out_of_domain:
                    analysis.alarm_step = self._promises.alarm and self._promises.alarm.step(score.step_scores)
                    analysis.clean_prefix = self._promises.prefix and self._promises.prefix.length(score.step_scores)
                if self._guard is not None and broken is not None:
                    self._guard.tell(analysis, broken[index])
            answers.append(ScoringAnswer(analysis, score.truncated_steps, self.version, known, score.raw_scores))
        return answers

    def tokens(self, request: ScoringRequest) -> int:
        """How many tokens the model reads of a trajectory."""
        return len(self._scorer.encoder.encode(request.prompt, request.steps).ids)

    async def _scores(self, requests: Sequence[ScoringRequest]) -> list[tuple[ChainScore, int | None]]:
        keys = [context_key(self._scorer.version, request.prompt, request.steps) for request in requests]
        found: dict[str, tuple[ChainScore, int | None]] = {
            key: (score, None) for key in set(keys) if (score := self._cache.get(key)) is not None}
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in found}
        self._engine.observer.looked_up(len(keys), sum(key in found for key in keys))
        if missing:
            for key, scored in zip(missing, await self._score(list(missing.values())), strict=True):
                self._cache.put(key, scored.score)
                found[key] = scored.score, scored.known
        return [found[key] for key in keys]

    async def _score(self, requests: Sequence[ScoringRequest]) -> list[Scored]:
        try:
            return await self._engine.scored([(request.prompt, request.steps) for request in requests])
        except RefusedChain as error:
            raise InputError(f"{requests[error.index].where}: {error}") from None

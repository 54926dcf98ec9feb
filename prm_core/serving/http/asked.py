"""What a request asks of the reward model: trajectories within the limits, scored by one version, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prm_core.config import HttpConfig
from prm_core.errors import InputError
from prm_core.platform.steps import parse_steps
from prm_core.serving.drift.watch import Watch
from prm_core.serving.http.body import TooLarge
from prm_core.serving.metrics import Metrics
from prm_core.serving.service import ScoringAnswer, ScoringRequest, parse_parameters, parse_request
from prm_core.serving.swap.current import Served
from prm_core.serving.swap.recent import Recent

# Characters of a token, on average over a context, beyond which no text goes.
LONGEST_TOKEN = 64
# A turn with two calls and what a user says to it.
MESSAGES_A_STEP = 4


@dataclass(slots=True)
class Asked:
    """One request's way to the model.

    Attributes:
        served: which it is, from the request's first trajectory to its answer.
        limits: what it may ask at once.
        metrics: where it is counted.
        recent: where what was asked is kept for a while.
        watch: what notices it.
        tenant: name of the API key, empty without keys.
        trajectories, steps: how many were scored.
    """

    served: Served
    limits: HttpConfig
    metrics: Metrics
    recent: Recent
    watch: Watch
    tenant: str = ""
    trajectories: int = field(default=0, init=False)
    steps: int = field(default=0, init=False)

    def request(self, record: Any, where: str, then: Sequence[Any] = ()) -> ScoringRequest:
        """A trajectory from JSON values (`service.parse_request`), looked at for its size before anything else.

        Args:
            then: steps, as JSON values, that came after the messages.

        Raises TooLarge for more steps than may be, InputError for more text than the model's context could hold however
        it is tokenized, and as `parse_request` does.
        """
        if isinstance(record, Mapping):
            self._check_count(record.get("steps"), "steps", self.limits.max_steps, where)
            self._check_count(record.get("messages"), "messages", self.limits.max_steps * MESSAGES_A_STEP, where)
            self._check_text([*record.values(), *then], where)
        after = parse_steps(list(then), where) if then else ()
        request = parse_request(record, where, after)
        self._check_count(request.steps, "steps", self.limits.max_steps, where)
        return request

    def check_number(self, count: int, field: str) -> None:
        """Raises TooLarge for more trajectories than a request may hold."""
        if count > self.limits.max_trajectories:
            raise TooLarge(f"`{field}` holds {count} trajectories; a request may have {self.limits.max_trajectories} "
                           "(http.max_trajectories): send several requests")

    async def answer(self, requests: Sequence[ScoringRequest], parameters: Mapping[str, Any] | None = None
                     ) -> list[ScoringAnswer]:
        """What the model says of trajectories, in order; it waits for nothing but the engine (engine/waiting.py).

        Args:
            parameters: `threshold` and `aggregate`; the model's own where they are left out.

        Raises InputError as `ScoringService.answer` and `parse_parameters` do.
        """
        if self.watch.withdrawn():
            self.recent.clear()
            self.served.service.forget()
        chosen = parse_parameters(parameters or {}, self.served.defaults)
        answers = await self.served.service.answering(requests, **chosen)
        self.watch.keep(self.served, requests, answers, self.tenant)
        doubt = self.watch.doubt(self.served)
        for answer in answers:
            said = answer.analysis
            assert said is not None
            said.calibration_stale = doubt and doubt.reason
            self.metrics.judged(said.step_scores, said.first_error_step, said.in_domain is False,
                                said.alarm_step is not None and said.alarm_step >= 0,
                                [(one.rule, one.severity) for one in said.violations or ()], bool(said.blocked))
            self.steps += len(said.step_scores)
        self.trajectories += len(answers)
        self.recent.add(self.served.source, requests, answers)
        return answers

    def tokens(self, requests: Sequence[ScoringRequest]) -> int:
        """How many the model read of them."""
        return sum(self.served.service.tokens(request) for request in requests)

    def _check_count(self, found: Any, field: str, most: int, where: str) -> None:
        if isinstance(found, list | tuple) and len(found) > most:
            raise TooLarge(f"{where}: {len(found)} {field}; a trajectory may have {most} (http.max_steps)")

    def _check_text(self, record: Sequence[Any], where: str) -> None:
        context = self.served.service.encoding.max_length
        characters = _characters(record)
        if characters > context * LONGEST_TOKEN:
            raise InputError(f"{where}: {characters} characters of text, and the model reads {context} tokens, so that "
                             "they cannot fit; shorten the prompt or the steps")


def _characters(values: Any) -> int:
    """Of all texts in JSON values; names of fields aside."""
    found, level = 0, [values]
    while level:
        value = level.pop()
        if isinstance(value, str):
            found += len(value)
        elif isinstance(value, Mapping):
            level += value.values()
        elif isinstance(value, list):
            level += value
    return found

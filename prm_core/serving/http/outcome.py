"""Outcomes told over HTTP: whether the task of a trajectory that was scored has succeeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, Field

from prm_core.serving.drift.outcomes import LEAST_CHANCE, LONGEST_NAME, parse_outcome, trajectory_id
from prm_core.serving.http import body
from prm_core.serving.http.asked import Asked
from prm_core.serving.http.native import MESSAGES, STEPS, Strict


class Ended(Strict):
    """A trajectory and how it ended: its `trajectory_id`, or its texts as they were sent to be scored."""

    trajectory_id: str | None = Field(None, description="as this path answers it")
    prompt: str | None = Field(None, description="the question that the steps answer")
    steps: list[Any] | None = Field(None, description=STEPS)
    messages: list[Any] | None = Field(None, description=MESSAGES)
    tools: list[Any] | None = Field(None, description="definitions of the tools that were offered")
    # No other value is taken for one: a word such as "no", from a log, would teach.
    success: bool = Field(strict=True, description="whether the task has succeeded")
    reporter: str = Field("", max_length=LONGEST_NAME, description=(
        "who says so, with API keys of those with this one; what it says is weighed by how far it has been right"))
    chance: float = Field(1.0, strict=True, ge=LEAST_CHANCE, le=1, description=(
        "that this one was carried out, of those that were scored for its question: below 1 where scores choose, and "
        "explore"))


class Told(Strict):
    """Outcomes, each of a trajectory; a later one of the same reporter takes the place of an earlier one."""

    outcomes: Annotated[list[Ended], body.FirstFault()] = Field(min_length=1)


class Noted(BaseModel):
    """The trajectories' ids, in order."""

    trajectory_ids: list[str]


async def outcome(asked: Asked, values: Mapping[str, Any]) -> dict[str, Any]:
    """Notes outcomes, all or none: a line each in a file."""
    if isinstance(values.get("outcomes"), list):
        asked.check_number(len(values["outcomes"]), "outcomes")
    given = body.checked(Told, values)
    found = []
    for number, one in enumerate(given.outcomes):
        where, record = f"outcomes[{number}]", one.model_dump(exclude_none=True)
        name = one.trajectory_id
        if name is None:
            request = asked.request(record, where)
            name = trajectory_id(request.prompt, request.steps)
        said = parse_outcome(record, where, asked.watch.now, name)
        # Whose word it is the key says: nobody speaks with the trust that another has earned.
        found.append(replace(said, reporter=f"{asked.tenant}/{said.reporter}") if asked.tenant else said)
    asked.watch.told(found)
    return {"trajectory_ids": [one.trajectory for one in found]}

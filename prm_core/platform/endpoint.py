"""An OpenAI-compatible server as it is asked over HTTP: keys, retries with growing pauses, so many requests at once, an
end to each. What is asked, and what an answer means, is the caller's.

Connection errors, time-outs and the statuses 408, 409, 429 and 5xx are tried again by the openai package, with a
growing pause or the one the server asks for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prm_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openai import AsyncOpenAI

log = logging.getLogger(__name__)
PREFLIGHT_SECONDS = 10.0
# The openai package waits at most this long between two tries, where the server does not say how long.
BACKOFF_SECONDS = 8.0
# Characters of a server's message that are passed on.
SHOWN = 300


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer, after all tries."""

    reason: str


class Endpoint:
    """A server by its base URL.

    Args:
        url: such as http://localhost:8000/v1.
        key_env: environment variable that holds the key; empty or unset is no key.
        timeout: seconds for one try, between two bytes of the answer.
        retries: of a request.
        concurrency: what may be under way at once, see `ask`.
        section: of the configuration, for messages.

    Raises InputError where the URL is none, or the server demands a key and there is none.
    """

    def __init__(
        self, url: str, *, key_env: str, timeout: float, retries: int, concurrency: int, section: str
    ) -> None:
        self.url, self.section = url, section
        self.timeout, self.retries, self.concurrency = timeout, retries, concurrency
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{section}.endpoint {url!r} is no http(s) URL; give the server's base URL, such as "
                             "http://localhost:8000/v1")
        if parts.username or parts.password:
            raise InputError(f"{section}.endpoint at {parts.hostname} holds a user or password; put the key into the "
                             f"environment variable that {section}.api_key_env names")
        self._key_env = key_env
        self._key = os.environ.get(key_env, "") if key_env else ""
        # Names of the models it lists; None where it lists none to us.
        self.models = self._list_models()

    def ask(
        self, path: str, bodies: Sequence[Mapping[str, Any]], *, weights: Sequence[int] | None = None,
        check: Callable[[int, Any], None] | None = None,
    ) -> tuple[list[Any], int]:
        """The JSON of each answer, or a Failure, in order; and how many requests were sent, repetitions included.

        Args:
            path: below the base URL.
            weights: how much of `concurrency` each request takes; 1 each by default.
            check: called with the number and JSON of an answer, or Failure, when it comes; what it raises ends the
                requests under way and is raised here.
        """
        # A loop of its own in a thread of its own: the caller may be running in one already.
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(asyncio.run, self._ask_all(path, bodies, weights, check)).result()

    def _list_models(self) -> tuple[str, ...] | None:
        """Raises InputError when the server wants a key and none is set; any other trouble shows in the requests."""
        import openai

        options = self._options() | {"timeout": min(self.timeout, PREFLIGHT_SECONDS), "max_retries": 0}
        try:
            with openai.OpenAI(**options) as client:
                listed = client.models.list(extra_headers=self._headers())
                names = tuple(str(model.id) for model in listed.data)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            if self._key:
                # A server that lists no models to this key may still answer.
                return None
            variable = self._key_env or f"whose name you give in {self.section}.api_key_env"
            raise InputError(f"{self.section}.endpoint {self.url} demands a key ({error.status_code}); set the "
                             f"environment variable {variable}") from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            log.info("%s: %s lists no models (%s)", self.section, self.url, error)
            return None
        return names or None

    def _options(self) -> dict[str, Any]:
        # The package wants a key of some kind; `_headers` keeps it back where there is none.
        return {"base_url": self.url, "api_key": self._key or "none", "timeout": self.timeout,
                "max_retries": self.retries}

    def _headers(self) -> dict[str, Any]:
        import openai

        return {} if self._key else {"Authorization": openai.omit}

    async def _ask_all(
        self, path: str, bodies: Sequence[Mapping[str, Any]], weights: Sequence[int] | None,
        check: Callable[[int, Any], None] | None,
    ) -> tuple[list[Any], int]:
        import openai

        sent = 0

        async def count(_: Any) -> None:
            nonlocal sent
            sent += 1

        async def one(number: int) -> Any:
            async with room(1 if weights is None else weights[number]):
                answer = await self._ask_one(client, path, bodies[number])
            if check is not None:
                check(number, answer)
            return answer

        room = _room(self.concurrency)
        http_client = openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]})
        async with openai.AsyncOpenAI(http_client=http_client, **self._options()) as client:
            tasks = [asyncio.ensure_future(one(number)) for number in range(len(bodies))]
            try:
                answers = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        return answers, sent

    async def _ask_one(self, client: AsyncOpenAI, path: str, body: Mapping[str, Any]) -> Any:
        import openai

        # The package's time-out starts anew with every byte; a server that drips must end too.
        limit = (self.retries + 1) * (self.timeout + BACKOFF_SECONDS)
        try:
            answer = await asyncio.wait_for(client.post(
                path, body=dict(body), cast_to=str, options={"headers": self._headers()}), limit)
            return json.loads(answer)
        except TimeoutError:
            return Failure(f"no answer within {limit:g} s")
        except openai.APIStatusError as error:
            # The package's own message leaves out what is not worded as OpenAI does it.
            return Failure(f"the server answers {error.status_code}: {error.response.text[:SHOWN] or error.message}")
        except ValueError as error:
            return Failure(f"the answer is no JSON ({error})")
        except openai.OpenAIError as error:
            return Failure(f"{type(error).__name__}: {error}")


def _room(size: int) -> Callable[[int], Any]:
    """Blocks of which so much may be under way at once, first come, first served; one larger than all takes all."""
    free, turn = asyncio.Semaphore(size), asyncio.Lock()

    @asynccontextmanager
    async def taking(weight: int) -> AsyncIterator[None]:
        weight = min(weight, size)
        taken = 0
        try:
            # Two that each held a part of what they need would wait for each other.
            async with turn:
                for _ in range(weight):
                    await free.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                free.release()

    return taking


def at(value: Any, *path: str | int) -> Any:
    """What lies at a path in JSON; None where nothing does."""
    for step in path:
        if isinstance(step, str) and isinstance(value, dict):
            value = value.get(step)
        elif isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        else:
            return None
    return value

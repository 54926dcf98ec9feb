"""An OpenAI-compatible server as it is asked over HTTP: keys, retries with growing pauses, so many requests at once, an
end to each. What is asked, and what an answer means, is the caller's.

Connection errors, time-outs, answers that break off and the statuses 408, 409, 429 and 5xx are tried again, with a
growing pause or the one the server asks for. By aiohttp and not by the openai package, which takes ten times as long
for a request: at a server's full load on the same machine that is a tenth of its throughput.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from prm_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import ClientSession

T = TypeVar("T")
log = logging.getLogger(__name__)
PREFLIGHT_SECONDS = 10.0
# The first pause between two tries, and the longest, where the server does not say how long.
FIRST_PAUSE, BACKOFF_SECONDS = 0.5, 8.0
# Statuses below 500 after which a try may go better.
AGAIN = (408, 409, 429)
# Characters of a server's message that are passed on.
SHOWN = 300


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer, after all tries; with the status of one that was refused."""

    reason: str
    status: int | None = None


class Endpoint:
    """A server by its base URL.

    Args:
        url: such as http://localhost:8000/v1.
        key_env: environment variable that holds the key; empty or unset is no key.
        timeout: seconds for one try, between two bytes of the answer.
        retries: of a request.
        concurrency: what may be under way at once, see `ask`.
        section: of the configuration, for messages.

    Proxies are those of the environment (http_proxy, https_proxy, no_proxy).

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
        # Looked up once: aiohttp itself would for every request, in a thread.
        self._proxy = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
        if self._proxy and urlsplit(self._proxy).scheme not in ("http", "https"):
            raise InputError(f"{section}.endpoint {url!r} would be asked through a proxy that the environment variable "
                             f"{parts.scheme}_proxy names, and that is no http(s) one; name the host in no_proxy, or "
                             "another proxy")
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
        return _run(self._ask_all(path, bodies, weights, check))

    def _list_models(self) -> tuple[str, ...] | None:
        """Raises InputError when the server wants a key and none is set; any other trouble shows in the requests."""
        answer = _run(self._get_models())
        if isinstance(answer, Failure):
            if answer.status in (401, 403) and not self._key:
                variable = self._key_env or f"whose name you give in {self.section}.api_key_env"
                raise InputError(f"{self.section}.endpoint {self.url} demands a key ({answer.status}); set the "
                                 f"environment variable {variable}")
            # A server that lists no models to this key may still answer.
            log.info("%s: %s lists no models (%s)", self.section, self.url, answer.reason)
        listed = at(answer, "data")
        names = [at(model, "id") for model in listed] if isinstance(listed, list) else []
        return tuple(name for name in names if isinstance(name, str)) or None

    async def _get_models(self) -> Any:
        async with self._session(min(self.timeout, PREFLIGHT_SECONDS)) as session:
            return (await self._try(session, "GET", "/models", None))[0]

    def _session(self, timeout: float) -> ClientSession:
        """Connections of one event loop."""
        import aiohttp

        key = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), proxy=self._proxy,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout),
            headers={"Accept": "application/json", "Content-Type": "application/json", **key})

    async def _ask_all(
        self, path: str, bodies: Sequence[Mapping[str, Any]], weights: Sequence[int] | None,
        check: Callable[[int, Any], None] | None,
    ) -> tuple[list[Any], int]:
        sent = 0

        async def one(number: int) -> Any:
            nonlocal sent
            async with room(1 if weights is None else weights[number]):
                answer = await self._ask_one(session, path, json.dumps(bodies[number]).encode(), count)
            if check is not None:
                check(number, answer)
            return answer

        def count() -> None:
            nonlocal sent
            sent += 1

        room = _room(self.concurrency)
        async with self._session(self.timeout) as session:
            tasks = [asyncio.ensure_future(one(number)) for number in range(len(bodies))]
            try:
                answers = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        return answers, sent

    async def _ask_one(self, session: ClientSession, path: str, body: bytes, count: Callable[[], None]) -> Any:
        """The JSON of the answer, or a Failure, after as many tries as it takes."""
        # A try's time-out starts anew with every byte; a server that drips must end too.
        limit = (self.retries + 1) * (self.timeout + BACKOFF_SECONDS)
        end = asyncio.get_running_loop().time() + limit
        try:
            async with asyncio.timeout_at(end):
                for number in itertools.count():
                    count()
                    answer, pause = await self._try(session, "POST", path, body)
                    if pause is None or number == self.retries:
                        break
                    if pause and asyncio.get_running_loop().time() + pause > end:
                        return Failure(f"{answer.reason}; a pause of {pause:g} s, as it asks for, is longer than all "
                                       f"tries may take ({limit:g} s)", answer.status)
                    await asyncio.sleep(pause or _backoff(number))
        except TimeoutError:
            return Failure(f"no answer within {limit:g} s")
        return answer

    async def _try(
        self, session: ClientSession, method: str, path: str, body: bytes | None
    ) -> tuple[Any, float | None]:
        """The JSON of the answer, or a Failure; and, where another try may help, the pause before it that the server
        asks for, 0 where it asks for none."""
        import aiohttp

        try:
            async with session.request(method, self.url.rstrip("/") + path, data=body) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            return Failure(f"{type(error).__name__}: {error}"), 0.0
        if not answer.ok:
            said = content.decode(errors="replace")[:SHOWN] or answer.reason
            again = answer.status in AGAIN or answer.status >= 500
            return (Failure(f"the server answers {answer.status}: {said}", answer.status),
                    _asked_pause(answer.headers.get("Retry-After", "")) if again else None)
        try:
            return json.loads(content), None
        except (ValueError, RecursionError) as error:
            return Failure(f"the answer is no JSON ({error})"), None


def _run(asking: Coroutine[Any, Any, T]) -> T:
    """In a loop of its own in a thread of its own: the caller may be running in one already."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, asking).result()


def _backoff(failed: int) -> float:
    """Seconds to wait after so many failures and one; a part by chance, so that requests do not all come again at once.
    """
    return min(FIRST_PAUSE * 2.0 ** min(failed, 10), BACKOFF_SECONDS) * (1 - random.random() / 4)


def _asked_pause(value: str) -> float:
    """Seconds of a header Retry-After, which holds seconds or a date; 0 without a sensible one."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return seconds if seconds > 0 else 0.0


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

"""A client that posts completions and reads them, and nothing else: what a server can give at full load."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

import aiohttp

from prm_core.config import Config
from prm_core.sampling.backends.kinds import Asked
from prm_core.sampling.backends.server import ServedPolicy
from prm_core.types import Problem


def raw_rate(policy: ServedPolicy, problems: Sequence[Problem], config: Config, seed: int) -> float:
    """Tokens a second, one continuation of each problem, with the policy's concurrency and the same requests."""
    encoder, settings = policy.encoder, config.sampling
    asked = Asked(1.0, config.generate.max_new_tokens, seed, (encoder.eos_id,), ())
    bodies = [json.dumps(policy.kind.body(settings.model, policy.prompt(tuple(encoder.encode_prompt(problem.prompt))),
                                          asked, 1)) for problem in problems]
    start = time.perf_counter()
    written = asyncio.run(_post(f"{settings.endpoint}/completions", bodies, settings.concurrency))
    return written / (time.perf_counter() - start)


async def _post(url: str, bodies: Sequence[str], concurrency: int) -> int:
    """Tokens that came back."""
    waiting = iter(bodies)

    async def work(session: aiohttp.ClientSession) -> int:
        written = 0
        for body in waiting:
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
                written += (await answer.json())["usage"]["completion_tokens"]
        return written

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:
        return sum(await asyncio.gather(*(work(session) for _ in range(concurrency))))

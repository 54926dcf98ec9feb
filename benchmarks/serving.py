"""The server under load: agents that ask after every step, searches, single chains, and what they do to each other.

Speeds are of clients over HTTP that do nothing else, on the same machine; what they are compared with is measured in
the same run, in turn. `--before` names another checkout whose server is measured beside.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import report
from benchmarks.report import Bar
from prm_core.domains import arithmetic
from prm_core.types import Step

if TYPE_CHECKING:
    from prm_core.scoring.scorer import RewardScorer

CONTEXT = 131_072
AGENT_STEPS, CLIENTS, BRANCHES = 60, 64, 64
SHORT_STEP, LONG_STEP, LONG_TOKENS, LONG_TOGETHER = 10, 200, 100_000, 20
Texts = tuple[str, list[str]]
Ask = Callable[[bytes], "asyncio.Future[float]"]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="folder of a process reward model")
    parser.add_argument("--base", type=Path, help="in its place a language model, on which an untrained one is put")
    parser.add_argument("--before", type=Path, help="another checkout whose server is measured beside")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--minutes", type=float, default=10.0, help="of saturation, for the server's memory")
    parser.add_argument("--seed", type=int, default=0)


def main() -> None:
    """Measures and writes."""
    given = report.arguments("serving", options)
    if given.quick:
        given.seconds, given.minutes, given.repeats = min(given.seconds, 3.0), min(given.minutes, 0.0), 1
    with tempfile.TemporaryDirectory() as name:
        folder = prepare(given, Path(name) / "model")
        bars, more = measure(folder, given)
    report.write(given, bars, **more)


def prepare(given: argparse.Namespace, folder: Path) -> Path:
    """The model to serve, with room for long sessions: positions are rotated, so no table ends."""
    from prm_core.config import EncoderConfig
    from prm_core.models.encoder import Encoder
    from prm_core.models.loading import load_tokenizer
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.reward import ProcessRewardModel
    from prm_core.scoring.scorer import load_scorer, save_reward_model

    if given.base is not None:
        encoding = EncoderConfig(max_length=CONTEXT)
        model = ProcessRewardModel.from_backbone(str(given.base), surprisal=True, encoder=dataclasses.asdict(encoding),
                                                 dtype="float32", device="cpu")
        model.network.config.max_position_embeddings = CONTEXT
        save_reward_model(model, Encoder(load_tokenizer(str(given.base)), encoding), Calibrator("identity", 0), folder)
        return folder
    scorer = load_scorer(given.model)
    scorer.model.encoder["max_length"] = scorer.model.network.config.max_position_embeddings = CONTEXT
    # Whole: it is loaded far from its base.
    scorer.model.base = None
    save_reward_model(scorer.model, scorer.encoder, scorer.calibrator, folder, scorer.domain)
    return folder


def session(number: int, steps: int, seed: int) -> Texts:
    """A question, and steps of a session about it that is like no other."""
    [problem] = arithmetic.make_problems(f"serving-{number}", 1, seed)
    draw = random.Random(f"{seed} {number}")
    pairs = [(draw.randrange(50), draw.randrange(1, 50)) for _ in range(steps)]
    return problem.prompt, [f"Ana buys {more} more: {held} + {more} = {held + more}." for held, more in pairs]


def chain(number: int, seed: int) -> Texts:
    """A question and its whole solution, like no other."""
    [problem] = arithmetic.make_problems(f"chain-{number}", 1, seed)
    return problem.prompt, list(problem.meta["solution"])


def body(*chains: Texts) -> bytes:
    return json.dumps({"inputs": [{"prompt": prompt, "steps": steps} for prompt, steps in chains]}).encode()


@contextlib.contextmanager
def served(folder: Path, checkout: Path) -> Iterator[tuple[int, int]]:
    """Port and process number of `prm serve` of a checkout."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from prm_core.cli import main; main()", "serve", "--model", str(folder), "--port",
             str(port)], cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, stdout=log, stderr=log)
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ping")
                    break
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"the server of {checkout} ended: {log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield port, process.pid
        finally:
            # It may still read what nobody waits for.
            process.kill()
            process.wait()


class Client:
    """One connection to a server, kept open."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, content: bytes, *, read: bool = False) -> tuple[float, Any]:
        """Seconds that an answer took, and what it says if that is asked for."""
        head = (f"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(content)}\r\n\r\n").encode()
        start = time.perf_counter()
        self.writer.write(head + content)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in answer.split(b"\r\n")
                      if line.lower().startswith(b"content-length"))
        text = await self.reader.readexactly(length)
        took = time.perf_counter() - start
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the server answered {answer[:40]!r} {text[:300]!r}")
        return took, json.loads(text) if read else None


def growing(steps: int, seed: int, numbers: Iterator[int]) -> Iterator[bytes]:
    """What an agent asks: sessions, one after the other, after every step."""
    for number in numbers:
        prompt, texts = session(number, steps, seed)
        for count in range(1, steps + 1):
            yield body((prompt, texts[:count]))


async def saturate(port: int, asks: Sequence[Iterator[bytes]], seconds: float) -> float:
    """Answers a second, of clients that ask again as soon as they have an answer."""
    done = 0
    end = time.perf_counter() + seconds

    async def one(stream: Iterator[bytes]) -> None:
        nonlocal done
        async with Client(port) as client:
            while time.perf_counter() < end:
                await client.ask(next(stream))
                done += 1

    start = time.perf_counter()
    await asyncio.gather(*(one(stream) for stream in asks))
    return done / (time.perf_counter() - start)


async def steady(port: int, stream: Iterator[bytes], rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds that answers took of questions that come at a rate, at random and whether or not others have theirs."""
    draw = random.Random(seed)
    free: list[Client] = []
    took: list[float] = []

    async def one(content: bytes) -> None:
        start = time.perf_counter()
        client = free.pop() if free else await Client(port).__aenter__()
        await client.ask(content)
        took.append(time.perf_counter() - start)
        free.append(client)

    end, tasks, due = time.perf_counter() + seconds, [], time.perf_counter()
    while due < end:
        due += draw.expovariate(rate)
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(one(next(stream))))
    await asyncio.gather(*tasks)
    for client in free:
        client.writer.close()
    return took


async def growth(port: int, sessions: int, seed: int) -> dict[int, list[float]]:
    """Seconds that each step's answer took, over sessions of one client."""
    took: dict[int, list[float]] = {}
    async with Client(port) as client:
        for number in range(sessions):
            for count, content in enumerate(growing(LONG_STEP, seed, iter([10**6 + number])), 1):
                took.setdefault(count, []).append((await client.ask(content))[0])
    return took


async def behind(port: int, seconds: float, seed: int, tokens_a_step: float) -> tuple[float, float]:
    """Median seconds of a short chain's answer, alone and while one of LONG_TOKENS is read."""
    stream = (body(chain(number, seed)) for number in itertools.count(5 * 10**6))
    prompt, short = session(7 * 10**6, int(LONG_TOKENS / tokens_a_step), seed)
    # In as many steps as a request may have.
    texts = [" ".join(short[start : start + LONG_TOGETHER]) for start in range(0, len(short), LONG_TOGETHER)]

    async def shorts(client: Client) -> float:
        took, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            took.append((await client.ask(next(stream)))[0])
        return statistics.median(took)

    async with Client(port) as client, Client(port) as other:
        alone = await shorts(client)
        long = asyncio.create_task(other.ask(body((prompt, texts))))
        await asyncio.sleep(0.5)
        beside = await shorts(client)
        if long.done() and long.exception():
            raise RuntimeError("the long request failed") from long.exception()
        long.cancel()
    return alone, beside


def in_process(scorer: RewardScorer, given: argparse.Namespace) -> dict[str, Any]:
    """The engine without HTTP, and the bare pass."""
    from prm_core.config import EngineConfig
    from prm_core.serving.engine.engine import Engine

    def steps(texts: Sequence[str]) -> list[Step]:
        return [Step(text) for text in texts]

    found: dict[str, list[float]] = {}
    # A language model takes as long for one as a small model for hundreds.
    count = 256 if given.base is None else 32
    whole = [(prompt, steps(texts)) for prompt, texts in (chain(n, given.seed) for n in range(count))]
    for repeat in range(given.repeats + 1):
        engine = Engine(scorer, EngineConfig(deadline=3600))
        start = time.perf_counter()
        own = scorer.score(whole)
        found.setdefault("bare_chains_per_second", []).append(len(whole) / (time.perf_counter() - start))
        start = time.perf_counter()
        said = engine.score(whole)
        found.setdefault("engine_chains_per_second", []).append(len(whole) / (time.perf_counter() - start))
        found.setdefault("largest_difference", []).append(max(
            abs(a - b) for one, other in zip(own, said, strict=True)
            for a, b in zip(one.step_scores, other.score.step_scores, strict=True)))
        prompt, texts = session(2 * 10**6 + repeat, 30, given.seed)
        engine.score([(prompt, steps(texts))])
        branches = [(prompt, steps([*texts, *session(3 * 10**6 + repeat * BRANCHES + n, 1, given.seed)[1]]))
                    for n in range(BRANCHES)]
        start = time.perf_counter()
        engine.score(branches)
        quick = time.perf_counter() - start
        start = time.perf_counter()
        # Together they would be read as a tree.
        for branch in branches:
            scorer.score([branch])
        found.setdefault("search_faster", []).append((time.perf_counter() - start) / quick)
        took: dict[int, float] = {}
        prompt, texts = session(4 * 10**6 + repeat, LONG_STEP, given.seed)
        for count in range(1, LONG_STEP + 1):
            start = time.perf_counter()
            engine.score([(prompt, steps(texts[:count]))])
            took[count] = time.perf_counter() - start
        found.setdefault("growth", []).append(grown({count: [value] for count, value in took.items()}))
        engine.close()
    # The first warms up.
    return {name: values[1:] for name, values in found.items()}


def as_the_guide(scorer: RewardScorer, seconds: float, seed: int) -> float:
    """Steps a second of the guide's server, which has no HTTP: of each step the whole text is tokenized anew and read
    in three passes, for its outputs, for the score at the step's place and for a confidence."""
    import torch

    done, start = 0, time.perf_counter()
    for number in itertools.count(8 * 10**6):
        prompt, texts = session(number, AGENT_STEPS, seed)
        for count in range(1, AGENT_STEPS + 1):
            ids = scorer.encoder.tokenizer("\n".join([prompt, *texts[:count]]), return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                for _ in range(3):
                    scorer.model.backbone(input_ids=ids, use_cache=False)
            done += 1
        if time.perf_counter() - start > seconds:
            break
    return done / (time.perf_counter() - start)


def grown(took: dict[int, list[float]]) -> float:
    """Median of the last steps over that of those around SHORT_STEP."""
    early, late = ([value for count in range(at - 4, at + 1) for value in took[count]]
                   for at in (SHORT_STEP + 2, LONG_STEP))
    return statistics.median(late) / statistics.median(early)


def measure(folder: Path, given: argparse.Namespace) -> tuple[list[Bar], dict[str, Any]]:
    """All loads, and the bars on them."""
    from prm_core.scoring.scorer import load_scorer

    scorer = load_scorer(folder)
    inside = in_process(scorer, given)
    tokens = [len(block) for block in scorer.encoder.encode_steps(session(0, 20, given.seed)[1])]
    bare = statistics.median(inside["bare_chains_per_second"])
    guide = as_the_guide(scorer, given.seconds, given.seed)
    del scorer
    here = Path(__file__).resolve().parent.parent
    numbers = itertools.count()
    loads: dict[str, dict[str, list[float]]] = {}
    for _ in range(given.repeats):
        for name, checkout in (("now", here), *([("before", given.before)] if given.before else [])):
            with served(folder, checkout) as (port, _):
                for load, clients in (("agents_1", 1), (f"agents_{CLIENTS}", CLIENTS)):
                    streams = [growing(AGENT_STEPS, given.seed, numbers) for _ in range(clients)]
                    loads.setdefault(load, {}).setdefault(name, []).append(
                        asyncio.run(saturate(port, streams, given.seconds)))
                singles = [(body(chain(number, given.seed)) for number in numbers) for _ in range(CLIENTS)]
                loads.setdefault("chains", {}).setdefault(name, []).append(
                    asyncio.run(saturate(port, singles, given.seconds)))
    more: dict[str, Any] = {"guide": guide}
    with served(folder, here) as (port, process):
        more["growth"] = grown(asyncio.run(growth(port, 2 if given.quick else 8, given.seed)))
        rate = 0.8 * statistics.median(loads[f"agents_{CLIENTS}"]["now"])
        took = sorted(asyncio.run(steady(port, interleaved(given.seed, numbers), rate, given.seconds, given.seed)))
        more["p50"], more["p99"] = (took[int(share * len(took))] for share in (0.5, 0.99))
        more["alone"], more["behind"] = asyncio.run(behind(port, given.seconds, given.seed, statistics.mean(tokens)))
        if given.minutes > 1:
            more["memory"] = memory(port, process, given, numbers)
    return bars(inside, loads, more, bare), {"inside": inside, "loads": loads, "more": more}


def interleaved(seed: int, numbers: Iterator[int]) -> Iterator[bytes]:
    """What CLIENTS agents ask in turn."""
    streams = [growing(AGENT_STEPS, seed, numbers) for _ in range(CLIENTS)]
    while True:
        for stream in streams:
            yield next(stream)


def memory(port: int, process: int, given: argparse.Namespace, numbers: Iterator[int]) -> dict[str, float]:
    """Resident bytes of the server after each minute of saturation."""
    import psutil

    found = {}
    for minute in range(1, int(given.minutes) + 1):
        streams = [growing(AGENT_STEPS, given.seed, numbers) for _ in range(CLIENTS)]
        asyncio.run(saturate(port, streams, 60.0))
        found[str(minute)] = float(psutil.Process(process).memory_info().rss)
    return found


def bars(inside: dict[str, list[float]], loads: dict[str, dict[str, list[float]]], more: dict[str, Any], bare: float
         ) -> list[Bar]:
    """What is asked, and whether it holds."""

    def at_most(name: str, value: float, limit: float) -> Bar:
        return Bar(name, value, None, None, f"<= {limit:g}", value <= limit)

    def at_least(name: str, values: Sequence[float], limit: float) -> Bar:
        value = statistics.median(values)
        return Bar(name, value, min(values), max(values), f">= {limit:g}", value >= limit)

    found = [
        at_most("step 200 against step 10, over HTTP", more["growth"], 1.3),
        at_most("step 200 against step 10, in-process", statistics.median(inside["growth"]), 1.3),
        at_least("64 branches of one prefix against each whole, in-process", inside["search_faster"], 6),
        at_least("single chains over HTTP against the bare pass", [v / bare for v in loads["chains"]["now"]], 0.8),
        at_least("engine against the bare pass, in-process", [
            a / b for a, b in zip(inside["engine_chains_per_second"], inside["bare_chains_per_second"], strict=True)],
            0.8),
        at_most("p99 against p50 at 80 % of saturation", more["p99"] / more["p50"], 4),
        at_most("a short chain behind one of 100,000 tokens against alone", more["behind"] / more["alone"], 3),
        at_most("largest difference of a score from the bare pass", max(inside["largest_difference"]), 1e-4),
    ]
    for load in loads if "before" in loads["chains"] else ():
        if load.startswith("agents"):
            ratios = [a / b for a, b in zip(loads[load]["now"], loads[load]["before"], strict=True)]
            found.append(at_least(f"{load}, steps a second against the server before", ratios, 8))
    for load in ("agents_1", f"agents_{CLIENTS}"):
        found.append(at_least(f"{load}, steps a second over HTTP against the guide's server in its process",
                              [value / more["guide"] for value in loads[load]["now"]], 20))
    if "memory" in more:
        minutes = list(more["memory"].values())
        found.append(at_most("memory at the end against after a minute", minutes[-1] / minutes[0], 1.05))
    return found


if __name__ == "__main__":
    main()

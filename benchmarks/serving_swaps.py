"""Versions of a model that take over from one another under load, and servers that are ended under it.

Clients ask after every step of a session, with branches of a search, and with single chains, as fast as they get
answers, while the registry's alias moves; each answer is held against the plain in-process score of the version that it
names.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import report
from benchmarks.report import Bar
from benchmarks.serving import Texts, body, chain, session
from prm_core import config as configuration
from prm_core.types import Step

CLOSE_ENOUGH = 1e-4
SESSION_STEPS, BRANCHES = 10, 8
POLL, WAIT, DRAIN_DELAY = 0.5, 300.0, 2.0
ALIAS = "champion"
ROOT = Path(__file__).resolve().parent.parent


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="folder of a process reward model")
    parser.add_argument("--other", type=Path, required=True, help="another one")
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--kills", type=int, default=5, help="of servers, and as many that are asked to end")
    parser.add_argument("--seed", type=int, default=0)


def main() -> None:
    """Measures and writes."""
    given = report.arguments("serving_swaps", options)
    if given.quick:
        given.swaps, given.kills = min(given.swaps, 6), min(given.kills, 1)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(given, Path(name))
        phases = {"swaps": bench.swaps(), "two processes": bench.swaps(workers=2),
                  "killed": bench.ends(signal.SIGKILL), "asked to end": bench.ends(signal.SIGTERM)}
        checked = {name: bench.check(phase.answers) for name, phase in phases.items()}
    report.write(given, bars(given, phases, checked), phases={
        name: {**phase.figures(), **checked[name]} for name, phase in phases.items()})


@dataclass(frozen=True, slots=True)
class Question:
    """What a client asks: where, what, about which chains, and which scores of theirs the answer holds."""

    path: str
    content: bytes
    chains: list[Texts]
    read: Callable[[Any], list[list[float]]]


@dataclass(frozen=True, slots=True)
class Answer:
    """The version that an answer names, what it is about, and its scores of the last steps of each chain."""

    model: str
    question: Question
    scores: list[list[float]]


@dataclass(frozen=True, slots=True)
class Loss:
    """A request that was sent at `began` and had no good answer at `ended`."""

    began: float
    ended: float
    reason: str


@dataclass
class Phase:
    """What came of a load."""

    answers: list[Answer] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    noted: dict[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """For the result."""
        return {"answers": len(self.answers), "by_version": dict(collections.Counter(a.model for a in self.answers)),
                "by_path": dict(collections.Counter(a.question.path for a in self.answers)),
                "losses": dict(collections.Counter(loss.reason for loss in self.losses)),
                "median_seconds": statistics.median(self.seconds), "longest_seconds": max(self.seconds), **self.noted}


def questions(kind: int, numbers: Iterator[int], seed: int) -> Iterator[Question]:
    """What a client asks, one after the other: a session's steps, a search's branches or single chains."""
    def predictions(said: Any) -> list[list[float]]:
        return [one["step_scores"] for one in said["predictions"]]

    for number in numbers:
        prompt, texts = session(number, SESSION_STEPS, seed)
        if kind == 0:
            for count in range(1, SESSION_STEPS + 1):
                content = json.dumps({"prompt": prompt, "steps": texts[: count - 1], "step": texts[count - 1]}).encode()
                yield Question("/score_step", content, [(prompt, texts[:count])], lambda said: [[said["step_score"]]])
        elif kind == 1:
            chains = [(prompt, [*texts[:4], *session(number * BRANCHES + n, 2, seed + 1)[1]]) for n in range(BRANCHES)]
            yield Question("/invocations", body(*chains), chains, predictions)
        else:
            one = chain(number, seed)
            yield Question("/invocations", body(one), [one], predictions)


class Client:
    """Asks one question after the other, over a connection that is kept as long as the server keeps it."""

    def __init__(self, port: int, phase: Phase) -> None:
        self._port, self._phase = port, phase
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, stream: Iterator[Question], ended: asyncio.Event) -> None:
        """Asks until it is told to end; a server that takes no connection is asked again, with the same question."""
        for question in stream:
            while not ended.is_set():
                try:
                    if self._writer is None:
                        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
                except OSError:
                    # Nothing was sent.
                    await asyncio.sleep(0.05)
                    continue
                await self._ask(question)
                break
            if ended.is_set():
                break
        if self._writer is not None:
            self._writer.close()

    async def _ask(self, question: Question) -> None:
        head = (f"POST {question.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(question.content)}\r\n\r\n").encode()
        began = time.time()
        try:
            self._writer.write(head + question.content)
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            text = await self._reader.readexactly(int(headers["content-length"]))
        except (OSError, asyncio.IncompleteReadError) as error:
            self._phase.losses.append(Loss(began, time.time(), type(error).__name__))
            self._writer.close()
            self._writer = None
            return
        self._phase.seconds.append(time.time() - began)
        if " 200 " in lines[0]:
            said = json.loads(text)
            self._phase.answers.append(Answer(headers["x-model"], question, question.read(said)))
            if said.get("model", headers["x-model"]) != headers["x-model"]:
                self._phase.losses.append(Loss(began, time.time(), "names two versions"))
        else:
            self._phase.losses.append(Loss(began, time.time(), lines[0].split(" ", 1)[1]))
        if headers.get("connection") == "close":
            self._writer.close()
            self._writer = None
            # As a load balancer does with a server that is not ready.
            await asyncio.sleep(2 * DRAIN_DELAY)


class Bench:
    """A workspace with two versions of a model, and what is done to servers of it.

    Args:
        given: the command's options.
        folder: an empty one.
    """

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        from prm_core.platform import tracking

        self._given, self._workspace = given, folder
        self._numbers = itertools.count()
        settings = yaml.safe_load((ROOT / configuration.PARAMS_FILE).read_text())
        settings["swap"] = {"poll": POLL, "shadow": 64, "max_difference": 1.0}
        settings["http"] = {"drain_delay": DRAIN_DELAY}
        (folder / configuration.PARAMS_FILE).write_text(yaml.safe_dump(settings))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._models = {self._register(model): model for model in (given.model, given.other)}
        # A version whose weights are broken after it was logged.
        self._broken = self._register(given.model)
        self._client = tracking.connect(folder)
        where = Path(self._client.get_model_version_download_uri("prm", self._broken.rsplit("/", 1)[1])
                     .removeprefix("file://"))
        [weights] = where.rglob("model.safetensors")
        content = bytearray(weights.read_bytes())
        content[-100] ^= 255
        weights.write_bytes(content)

    def _register(self, model: Path) -> str:
        from prm_core.platform import tracking
        from prm_core.serving.model_registry import add_version, log_reward_model

        run = tracking.start_run(self._workspace, "version", {})
        logged = log_reward_model(self._workspace, run, model, configuration.load(self._workspace).serve)
        made = add_version(self._workspace, "prm", logged, {})
        tracking.end_run(self._workspace, run, "FINISHED")
        return f"models:/prm/{made.version}"

    def _point_to(self, model: str) -> None:
        self._client.set_registered_model_alias("prm", ALIAS, model.rsplit("/", 1)[1])

    def _get(self, path: str, method: str = "GET") -> str:
        asked = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", method=method)
        return urllib.request.urlopen(asked, timeout=WAIT).read().decode()

    def _figure(self, name: str) -> float:
        """The sum of a metric over its labels."""
        return sum(float(line.rsplit(" ", 1)[1]) for line in self._get("/metrics").splitlines()
                   if line.startswith(f"prm:{name}{{"))

    def _start(self, workers: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "prm_core.cli", "serve", "--port", str(self._port), "--workers", str(workers)]
        with (self._workspace / "server.log").open("ab") as log:
            return subprocess.Popen(command, cwd=self._workspace, env={**os.environ, "PYTHONPATH": str(ROOT)},
                                    stdout=log, stderr=log)

    async def _until(self, holds: Callable[[], bool]) -> float:
        """Seconds until something holds. Raises RuntimeError with the log's end where it does not."""
        start = time.monotonic()
        while time.monotonic() - start < WAIT:
            with contextlib.suppress(OSError):
                if await asyncio.to_thread(holds):
                    return time.monotonic() - start
            await asyncio.sleep(0.02)
        raise RuntimeError((self._workspace / "server.log").read_text()[-3000:])

    def _serves(self, model: str, workers: int = 1) -> Callable[[], bool]:
        # Each connection may reach another process.
        return lambda: all(json.loads(self._get("/ready"))["model"] == model for _ in range(1 if workers == 1 else 12))

    async def _under_load(self, workers: int, work: Callable[[Phase, subprocess.Popen[bytes]], Awaitable[None]]
                          ) -> Phase:
        phase, ended = Phase(), asyncio.Event()
        first = next(iter(self._models))
        self._point_to(first)
        process = self._start(workers)
        try:
            await self._until(self._serves(first, workers))
            clients = [Client(self._port, phase) for _ in range(self._given.clients)]
            load = [asyncio.create_task(client.run(questions(n % 3, self._numbers, self._given.seed), ended))
                    for n, client in enumerate(clients)]
            await asyncio.sleep(1)
            await work(phase, process)
            ended.set()
            await asyncio.gather(*load)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                # The last that was started: that of the beginning may have ended.
                for one in phase.noted.pop("processes", [process]):
                    one.terminate()
                    one.wait(WAIT)
        return phase

    def swaps(self, workers: int = 1) -> Phase:
        """The alias moves to and fro; then to what is broken, and the registry is away for a while."""

        async def work(phase: Phase, process: subprocess.Popen[bytes]) -> None:
            models, took, memory = itertools.cycle(self._models), [], []
            next(models)
            for number in range(self._given.swaps if workers == 1 else max(self._given.swaps // 5, 2)):
                model = next(models)
                self._point_to(model)
                if number % 2:
                    await asyncio.to_thread(self._get, "/reload", "POST")
                took.append(await self._until(self._serves(model, workers)))
                await asyncio.sleep(0.5)
                memory.append(psutil.Process(process.pid).memory_info().rss)
            phase.noted |= {"swaps": len(took), "median_seconds_to_take_over": statistics.median(took),
                            "resident_bytes": memory}
            if workers > 1:
                return
            self._point_to(self._broken)
            await self._until(lambda: json.loads(self._get("/ready"))["alert"] is not None)
            await asyncio.sleep(4 * POLL)
            stays = [json.loads(self._get("/ready"))["model"] == model]
            phase.noted["tries_of_a_broken_version"] = self._figure("model_swaps_total") - len(took)
            self._point_to(model)
            await self._until(lambda: json.loads(self._get("/ready"))["alert"] is None)
            database, away = self._workspace / "mlflow.db", self._workspace / "away.db"
            shutil.move(database, away)
            try:
                await self._until(lambda: self._figure("registry_failures_total") >= 2)
                stays.append(json.loads(self._get("/ready"))["model"] == model)
            finally:
                shutil.move(away, database)
            model = next(models)
            self._point_to(model)
            await self._until(self._serves(model))
            phase.noted["stays_with_the_old_version"] = all(stays)

        return asyncio.run(self._under_load(workers, work))

    def ends(self, how: int) -> Phase:
        """Servers are ended, and started again."""

        async def work(phase: Phase, process: subprocess.Popen[bytes]) -> None:
            windows = []
            for _ in range(self._given.kills):
                start = time.time()
                process.send_signal(how)
                await asyncio.to_thread(process.wait, WAIT)
                windows.append((start, time.time()))
                process = self._start(1)
                phase.noted["processes"] = [process]
                await self._until(self._serves(next(iter(self._models))))
                await asyncio.sleep(2)
            phase.noted["in_flight"] = [sum(loss.began <= end and loss.ended >= start for loss in phase.losses)
                                        for start, end in windows]

        return asyncio.run(self._under_load(1, work))

    def check(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The answers beside plain scores, as `judged` has it."""
        from prm_core.scoring.scorer import load_scorer

        chains = {json.dumps(one): one for answer in answers for one in answer.question.chains}
        given = [(prompt, [Step(text) for text in texts]) for prompt, texts in chains.values()]
        return judged(answers, {model: {
            key: score.step_scores for key, score in zip(chains, load_scorer(folder).score(given), strict=True)}
            for model, folder in self._models.items()})


def judged(answers: Sequence[Answer], plain: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """How many answers are wrong, and of these of mixed versions; and of how many the versions differ.

    Args:
        plain: of each version, scores of the steps of each chain, by its JSON.
    """
    found = {"wrong": 0, "mixed": 0, "told_apart": 0, "largest_difference": 0.0}
    for answer in answers:
        known = {model: [value for one, scores in zip(answer.question.chains, answer.scores, strict=True)
                         for value in of[json.dumps(one)][-len(scores) :]] for model, of in plain.items()}
        said = [value for scores in answer.scores for value in scores]
        away = {model: [abs(a - b) for a, b in zip(said, values, strict=True)] for model, values in known.items()}
        own = max(away[answer.model])
        found["told_apart"] += any(abs(a - b) > 10 * CLOSE_ENOUGH for values in known.values()
                                   for a, b in zip(values, known[answer.model], strict=True))
        found["largest_difference"] = max(found["largest_difference"], own)
        if own > CLOSE_ENOUGH:
            found["wrong"] += 1
            found["mixed"] += (all(min(each) <= CLOSE_ENOUGH for each in zip(*away.values(), strict=True))
                               and min(max(each) for each in away.values()) > CLOSE_ENOUGH)
    return found


def bars(given: argparse.Namespace, phases: dict[str, Phase], checked: dict[str, dict[str, Any]]) -> list[Bar]:
    """What is asked, and whether it holds."""

    def none(name: str, value: float) -> Bar:
        return Bar(name, value, None, None, "0", value == 0)

    found = []
    for name in ("swaps", "two processes"):
        phase = phases[name]
        of = f"{phase.noted['swaps']} swaps{', two processes' if name != 'swaps' else ''}"
        found += [none(f"requests lost over {of}", len(phase.losses)), none(f"wrong over {of}", checked[name]["wrong"]),
                  none(f"of mixed versions over {of}", checked[name]["mixed"])]
    swaps, killed, asked = phases["swaps"], phases["killed"], phases["asked to end"]
    tries = swaps.noted["tries_of_a_broken_version"]
    memory = swaps.noted["resident_bytes"]
    early, late = statistics.median(memory[len(memory) // 5 :][:5]), statistics.median(memory[-5:])
    share = checked["swaps"]["told_apart"] / len(swaps.answers)
    found += [
        Bar("a broken version and a registry that is away: the old version stays", float(
            swaps.noted["stays_with_the_old_version"]), None, None, "1", swaps.noted["stays_with_the_old_version"]),
        Bar("times that the broken version is tried", tries, None, None, "1", tries == 1),
        Bar("answers of which the two versions differ", share, None, None, ">= 0.95", share >= 0.95),
        Bar("memory after the last swap against after a fifth of them", late / early, None, None, "<= 1.1",
            late / early <= 1.1),
        none(f"lost over {given.kills} kills, but for those in flight",
             len(killed.losses) - sum(killed.noted["in_flight"])),
        none("wrong around kills", checked["killed"]["wrong"]),
        none(f"lost over {given.kills} times asked to end", len(asked.losses)),
        none("wrong around these", checked["asked to end"]["wrong"]),
    ]
    return found


if __name__ == "__main__":
    main()

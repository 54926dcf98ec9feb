"""Malformed requests to the server, in-process: does any end in a 500 or a crash, and are scores afterwards the same?

    python -m benchmarks.serving_malformed --out benchmarks/results/serving_malformed.json

Requests are drawn from a seed: values drawn from the OpenAPI document's schemas, valid requests with one thing changed
(a value of another type, a huge or odd number, a deep nesting, half a character, a field renamed, doubled, left out or
added), bodies cut, flipped or sent under other headers, wrong paths and methods, and bodies that end too early. They do
no harm beyond being wrong, and several are under way at a time. A fixed request is scored before and after. Outcomes
that were answered are all in their file, and no others. The longest wait is of any of these requests, and of a request
of 10 MB by itself. What the server keeps lies in a temporary folder, and not in the workspace.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import re
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import Bar, arguments, write
from prm_core.config import PARAMS_FILE
from prm_core.serving import app
from prm_core.serving.drift.outcomes import FILE
from prm_core.serving.http.edge import CODES, GONE, LONGEST_MESSAGE, Edge

JSON = "application/json"
FIXED = {"inputs": [{"prompt": "Mia has 7 apples. Mia buys 5 more. How many apples does Mia have?",
                     "steps": ["Mia buys 5 more: 7 + 5 = 13.", "The answer is 13."]}]}
TURNS = [{"role": "user", "content": "What do 3 red pens cost?"},
         {"role": "assistant", "content": "I look.", "tool_calls": [
             {"id": "c", "type": "function", "function": {"name": "search", "arguments": "{\"q\": \"pens\"}"}}]},
         {"role": "tool", "tool_call_id": "c", "content": "red pens 14"}, {"role": "assistant", "content": "42"}]
ITEMS = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What?"}]},
         {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
         {"type": "function_call", "call_id": "c", "name": "search", "arguments": "{}"},
         {"type": "function_call_output", "call_id": "c", "output": "14"}]
STEP = {"text": "3 * 14 = 42", "reasoning": "multiply", "agent": "a", "observation": "ok", "ref": "7",
        "calls": [{"name": "search", "arguments": {"q": "pens"}, "result": "14", "failed": False, "id": "c"}],
        "context": [{"role": "user", "text": "and?", "name": "u"}]}
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}]
VALID: list[tuple[str, dict[str, Any]]] = [
    ("/invocations", {**FIXED, "params": {"threshold": 0.5, "aggregate": "min"}}),
    ("/invocations", {"inputs": [{"messages": TURNS, "tools": TOOLS}, {"prompt": "p", "steps": [STEP]}]}),
    ("/invocations", {"inputs": [{"messages": ITEMS}]}),
    ("/score_step", {"prompt": "p", "steps": ["a", STEP], "step": "b", "step_index": 2, "threshold": 0.4}),
    ("/score_step", {"conversation": TURNS, "step_text": "b", "tools": TOOLS}),
    ("/analyze_trajectory", {"messages": TURNS, "steps": ["c"], "aggregate": "mean"}),
    ("/v1/decisions", {"model": "m", "input": ITEMS, "prompt_cache_key": "k", "questions": [
        {"type": "predicate", "name": "step_0", "instructions": "Is step 0 right?"},
        {"type": "choice", "instructions": [{"type": "input_text", "text": "Is step 0 right?"}],
         "choices": [{"value": True}, {"value": False}]}, {"type": "score", "instructions": "x", "levels": []}]}),
    ("/v1/decisions", {"model": "m", "input": "outputs: {\"steps\": [\"a\"]}\ninputs: {\"task\": \"q\"}", "questions": [
        {"type": "predicate", "instructions": "Is the last step right?"}]}),
    ("/v1/systemone", {"model": "m", "state": {"inputs": {"task": "q"}, "outputs": {"steps": ["a"]}}, "questions": {
        "step_0": {"type": "noul", "criteria": {"true": "right", "false": "wrong"}},
        "e": {"type": "choice", "instructions": "step 0", "criteria": {"right": "", "wrong": ""}}}}),
    ("/classify", {"model": "m", "input": ["p<|step|>a<|step|>b"], "use_activation": True}),
    ("/pooling", {"model": "m", "messages": TURNS, "task": "token_classify", "encoding_format": "float"}),
    ("/get_reward", {"query": ["p a\n\nb", "p"], "prompts": ["p", "p"], "labels": ["", ""]}),
    ("/outcome", {"outcomes": [{"prompt": "p", "steps": ["a", STEP], "success": True, "reporter": "r", "chance": 0.5},
                               {"trajectory_id": "served-0123456789abcdef", "success": False}]}),
    ("/outcome", {"outcomes": [{"messages": TURNS, "tools": TOOLS, "success": True}]}),
]
TEXTS = ["", " ", "\n", "\0", "a\0b", "\ud800", "x\udfff", "\u202e\u200b", "\u0301" * 50, "😀" * 20, "<|step|>",
         "<|im_end|><|endoftext|>", "\\frac{1}{0}", "${{7*7}}", "NaN", "null", "../../x", "a" * 5000, "a " * 3000,
         "\r\n\r\n", "true", "step_0", "step_-1", "inputs: [", "-1", "\u0663", "\U0001d7db", "models:/prm/1"]
NUMBERS = [0, -1, 1, 2, 0.5, -0.0, 1e-320, 1e308, 10**18, 10**99, 2**63, 2**64, -(2**63), float("nan"), float("inf"),
           0.1 + 0.2, 3.0]
TYPES = [None, "", "text/csv", "text/plain", "multipart/form-data; boundary=x", "application/json; charset=latin-1",
         "application/json;charset=", "APPLICATION/JSON", "application/json; x=y", "application/x-ndjson", "json",
         "application/json\x00", "a/b/c", "é", "application/json; charset=\"utf-8\"", "application/vnd.api+json", ";"]
PATHS = ["/", "//", "/invocations/", "/Invocations", "/v1", "/v1/decision", "/v1/models", "/../etc", "/%00", "/é", "/?",
         "/metrics/x", "/score", "/classify?x=1", "/invocations?threshold=0.9", "/openapi.yaml", "/favicon.ico"]
METHODS = ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "POST", "GARBLE"]
AT_ONCE = 8


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="models:/prm@champion", help="as `prm serve --model` takes it")
    parser.add_argument("--workspace", type=Path, default=Path("."))
    parser.add_argument("--requests", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)


@dataclass(slots=True)
class Sent:
    """A request: `ends` after so many bytes, as of a client that goes; None for one that stays."""

    kind: str
    path: str
    body: bytes
    method: str = "POST"
    content_type: str | None = JSON
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    ends: int | None = None


@dataclass(frozen=True, slots=True)
class Got:
    status: int
    body: bytes
    seconds: float


async def ask(edge: Edge, sent: Sent) -> Got:
    """What the application answers. Whatever it raises is raised."""
    path, _, query = sent.path.partition("?")
    headers = [(b"host", b"a"), *sent.headers]
    if sent.content_type is not None:
        headers.append((b"content-type", sent.content_type.encode("utf-8")))
    parts = [sent.body[start : start + 65536] for start in range(0, len(sent.body), 65536)] or [b""]
    if sent.ends is not None:
        parts = [sent.body[: sent.ends]]
    arriving = iter(parts)

    async def receive() -> dict[str, Any]:
        part = next(arriving, None)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": part is not parts[-1] or sent.ends is not None}

    said: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        said.append(message)

    began = time.perf_counter()
    await edge({"type": "http", "http_version": "1.1", "method": sent.method, "path": path, "raw_path": path.encode(),
                "query_string": query.encode(), "headers": headers, "scheme": "http", "server": ("a", 80),
                "client": ("b", 1), "root_path": ""}, receive, send)
    body = b"".join(message.get("body", b"") for message in said[1:])
    return Got(said[0]["status"], body, time.perf_counter() - began)


class Draw:
    """Requests from a seed.

    Args:
        document: the server's OpenAPI document.
    """

    def __init__(self, seed: int, document: dict[str, Any]) -> None:
        self._random = random.Random(seed)
        self._schemas = document["components"]["schemas"]
        self._paths = {path: what["post"]["requestBody"]["content"][JSON]["schema"]
                       for path, what in document["paths"].items() if "requestBody" in what.get("post", {})}
        self._kinds: list[tuple[Callable[[], Sent], int]] = [
            (self._from_schema, 4), (self._changed, 8), (self._bytes, 3), (self._header, 1), (self._elsewhere, 1),
            (self._shape, 2), (self._gone, 1)]

    def request(self) -> Sent:
        kinds, weights = zip(*self._kinds, strict=True)
        return self._random.choices(kinds, weights)[0]()

    def value(self, depth: int = 0) -> Any:
        """Any JSON value, as Python has it."""
        kind = self._random.randrange(6 if depth < 3 else 4)
        if kind == 0:
            return self._random.choice([None, True, False])
        if kind == 1:
            return self._random.choice(NUMBERS)
        if kind in (2, 3):
            return self._random.choice(TEXTS)
        inner = [self.value(depth + 1) for _ in range(self._random.randrange(4))]
        return inner if kind == 4 else {self._random.choice(TEXTS): value for value in inner}

    def _valid(self) -> tuple[str, dict[str, Any]]:
        path, values = self._random.choice(VALID)
        return path, json.loads(json.dumps(values))

    def _from_schema(self) -> Sent:
        path = self._random.choice(list(self._paths))
        return Sent("schema", path, _json(self._drawn(self._paths[path])))

    def _drawn(self, schema: dict[str, Any], depth: int = 0) -> Any:
        if self._random.random() < 0.04:
            return self.value()
        if "$ref" in schema:
            return self._drawn(self._schemas[schema["$ref"].rpartition("/")[2]], depth)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                return self._drawn(self._random.choice(schema[name]), depth)
        if "const" in schema or "enum" in schema:
            return self._random.choice(schema.get("enum", [schema.get("const")]))
        kind = schema.get("type")
        if kind == "object" and "properties" in schema:
            asked = schema.get("required", [])
            return {name: self._drawn(inner, depth + 1) for name, inner in schema["properties"].items()
                    if (name in asked) != (self._random.random() < (0.05 if name in asked else 0.4))}
        if kind == "object":
            inner = schema.get("additionalProperties")
            return {self._random.choice(TEXTS): self._drawn(inner if isinstance(inner, dict) else {}, depth + 1)
                    for _ in range(self._random.randrange(3))}
        if kind == "array":
            inner = schema.get("items")
            return [self._drawn(inner if isinstance(inner, dict) else {}, depth + 1)
                    for _ in range(self._random.randrange(4) if depth < 6 else 0)]
        if kind == "string":
            return self._random.choice(TEXTS)
        if kind in ("number", "integer"):
            return self._random.choice(NUMBERS)
        return self._random.choice([self.value(), "3 + 4 = 7", STEP, TURNS[1], ITEMS[2]])

    def _changed(self) -> Sent:
        """A valid request of which one to three things are something else."""
        path, values = self._valid()
        for _ in range(self._random.choice([1, 1, 1, 2, 3])):
            holder, key = self._place(values)
            how = self._random.randrange(6)
            if how <= 2:
                holder[key] = self.value()
            elif how == 3:
                del holder[key]
            elif isinstance(holder, dict):
                name = self._random.choice([str(key)[:-1] + "x", str(key).upper(), str(key) + " ", *TEXTS])
                holder[name] = holder.pop(key) if how == 4 else self.value()
            else:
                holder.insert(0, holder[key] if how == 4 else self.value())
            if not values:
                break
        return Sent("changed", path, _json(values))

    def _place(self, values: Any) -> tuple[Any, Any]:
        """Some container within values and a key of it."""
        places: list[tuple[Any, Any]] = []
        level = [values]
        while level:
            holder = level.pop()
            keys = range(len(holder)) if isinstance(holder, list) else list(holder)
            places += [(holder, key) for key in keys]
            level += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
        return self._random.choice(places)

    def _bytes(self) -> Sent:
        path, values = self._valid()
        body = bytearray(_json(values))
        how = self._random.randrange(7)
        if how == 0:
            del body[self._random.randrange(len(body)) :]
        elif how == 1:
            for _ in range(self._random.randrange(1, 5)):
                body[self._random.randrange(len(body))] ^= 1 << self._random.randrange(8)
        elif how == 2:
            body[self._random.randrange(len(body))] = self._random.choice([0, 0x80, 0xC0, 0xFF, 0xED])
        elif how == 3:
            body = bytearray(b"\xef\xbb\xbf" + body)
        elif how == 4:
            body = body + body
        elif how == 5:
            body = bytearray(self._random.randbytes(self._random.randrange(200)))
        else:
            body = bytearray(self._random.choice([b"", b"null", b"[]", b"{}", b"0", b'"a"', b"{", b"\x1f\x8b\x08", b"-",
                                                  b"NaN", b"[1e999]", b"{} {}", b"\xff\xfe{\x00}\x00"]))
        return Sent("bytes", path, bytes(body))

    def _header(self) -> Sent:
        path, values = self._valid()
        headers = self._random.choice([
            [], [(b"content-length", b"x")], [(b"content-length", b"-1")], [(b"content-length", b"9" * 30)],
            [(b"authorization", b"Bearer \xff")], [(b"x-request-id", b"a" * 10_000)], [(b"x-request-id", b"\xff\x00")],
            [(b"content-encoding", b"gzip")], [(b"transfer-encoding", b"chunked")], [(b"accept", b"text/html")]])
        return Sent("header", path, _json(values), content_type=self._random.choice([JSON, *TYPES]), headers=headers)

    def _elsewhere(self) -> Sent:
        path, values = self._valid()
        return Sent("elsewhere", self._random.choice([path, *PATHS]), _json(values), self._random.choice(METHODS))

    def _shape(self) -> Sent:
        """Much of something."""
        path, values = self._valid()
        much = self._random.choice([30, 200, 2000, 20_000])
        holder, key = self._place(values)
        deep = self._random.randrange(6)
        if deep == 0:
            holder[key] = "DEEP"
            left, right = self._random.choice([("[", "]"), ('{"a":', "}"), ('[{"text":', "}]")])
            nested = left * much + "1" + right * self._random.choice([0, much])
            return Sent("shape", path, _json(values).replace(b'"DEEP"', nested.encode()))
        if deep == 1:
            holder[key] = "DIGITS"
            number = self._random.choice(["9" * much, "0." + "1" * much, "1e" + "9" * min(much, 300), "-" * much])
            return Sent("shape", path, _json(values).replace(b'"DIGITS"', number.encode()))
        holder[key] = self._random.choice([
            ["a"] * much, "ab " * much, {str(number): number for number in range(much)}, [[]] * much, [{}] * much,
            [{"role": "user", "content": "a"}] * much, [{"role": "tool", "tool_call_id": "z", "content": "a"}] * much,
            [{"role": "assistant", "content": "a", "tool_calls": TURNS[1]["tool_calls"]}] * much,
            [{"role": "environment", "content": "a" * 50}] * much, [STEP] * min(much, 2000), "\\" * much,
            [ITEMS[2]] * much, "step 1 " * much, "not " * much])
        return Sent("shape", path, _json(values))

    def _gone(self) -> Sent:
        path, values = self._valid()
        body = _json(values)
        return Sent("gone", path, body, ends=self._random.randrange(len(body)))


def _json(values: Any) -> bytes:
    # Half a surrogate pair is spelt out.
    return json.dumps(values).encode()


def resident() -> float:
    """Memory of this process in MiB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) / 1024


@dataclass(slots=True)
class Storm:
    """What came of the requests."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    echoes: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)

    def note(self, edge: Edge, room: float) -> None:
        """Memory, and how much of it are prefixes that the engine keeps in so many MiB."""
        self.memory.append(resident())
        [usage] = re.findall(rb"^prm:kv_cache_usage_perc.* (\S+)$", edge.metrics.render(), re.M)
        self.kept.append(float(usage) * room)

    def take(self, sent: Sent, got: Got) -> None:
        self.statuses[f"{sent.kind} {got.status}"] += 1
        self.seconds.append(got.seconds)
        told = f"{sent.method} {sent.path} {sent.kind} {sent.body[:300]!r}"
        if got.status >= 500 or got.status not in (200, GONE, *CODES):
            self.faults.append(f"{got.status} {told}: {got.body[:200]!r}")
        elif got.status == 200 and sent.path == "/outcome":
            self.told.update(json.loads(got.body)["trajectory_ids"])
        elif got.status not in (200, GONE) and sent.method != "HEAD":
            message = json.loads(got.body)["message"]
            if len(message) > LONGEST_MESSAGE or "\n" in message:
                self.echoes.append(told)


async def storm(edge: Edge, draw: Draw, count: int, room: float) -> Storm:
    """Sends so many requests, several at a time; memory is noted at every quarter.

    Args:
        room: MiB in which the engine may keep prefixes.
    """
    result, left = Storm(), iter(range(count))

    async def client() -> None:
        for number in left:
            sent = draw.request()
            result.sent += 1
            try:
                result.take(sent, await ask(edge, sent))
            except Exception as error:
                result.faults.append(f"{error!r:.200} {sent.method} {sent.path} {sent.kind} {sent.body[:300]!r}")
            if number and number % (count // 4) == 0:
                result.note(edge, room)

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    result.note(edge, room)
    return result


async def measure(edge: Edge, given: argparse.Namespace) -> tuple[Storm, bool, float]:
    """The storm, whether a fixed request is scored as before, and seconds to refuse 10 MB."""
    fixed = Sent("fixed", "/invocations", _json(FIXED))
    before = await ask(edge, fixed)
    document = json.loads((await ask(edge, Sent("page", "/openapi.json", b"", "GET"))).body)
    result = await storm(edge, Draw(given.seed, document), 2000 if given.quick else given.requests,
                         1024 * app.settings_of(given.workspace).engine.memory)
    after = await ask(edge, fixed)
    large = Sent("large", "/invocations", _json({"inputs": [{"prompt": "word " * 2_000_000, "steps": ["a"]}]}))
    waits = []
    for _ in range(max(3, given.repeats)):
        got = await ask(edge, large)
        assert got.status == 413, got
        waits.append(got.seconds)
    return result, before.status == 200 and before.body == after.body, statistics.median(waits)


def main() -> None:
    given = arguments("serving_malformed", more)
    logging.disable(logging.CRITICAL)
    served = app.load(given.model, given.workspace)
    with tempfile.TemporaryDirectory() as folder:
        if (given.workspace / PARAMS_FILE).is_file():
            shutil.copy(given.workspace / PARAMS_FILE, folder)
        result, same, large = asyncio.run(measure(app.build(served, Path(folder)), given))
        noted = Path(folder) / app.settings_of(Path(folder)).drift.folder / FILE
        lines = Counter(json.loads(line)["trajectory"] for line in noted.read_text().splitlines())
    count, strayed = result.sent, (lines - result.told) + (result.told - lines)
    # Prefixes are kept up to a limit, and this many requests do not come to it.
    first, *_, last = (used - kept for used, kept in zip(result.memory, result.kept, strict=True))
    write(given, [
        Bar("requests", count, None, None, ">= 10000", count >= 10_000),
        Bar("crashes and statuses of 500", len(result.faults), None, None, "0", not result.faults),
        Bar("a fixed request scored otherwise afterwards", int(not same), None, None, "0", same),
        Bar("outcomes answered and not noted, or the other way round", strayed.total(), None, None, "0",
            bool(result.told) and not strayed),
        Bar("answers that say more than a bounded line", len(result.echoes), None, None, "0", not result.echoes),
        Bar("memory at the end against after a quarter, without kept prefixes", last / first, None, None, "<= 1.1",
            last <= 1.1 * first),
        Bar("ms to refuse 10 MB", 1000 * large, None, None, "<= 20", large <= 0.02),
    ], statuses=dict(sorted(result.statuses.items())), faults=result.faults[:20], memory_mib=result.memory,
        kept_prefixes_mib=result.kept,
        seconds={"median": statistics.median(result.seconds), "longest": max(result.seconds)})


if __name__ == "__main__":
    main()

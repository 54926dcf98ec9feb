"""Judges of agents' turns on the same trajectories: the PRM, the ORM, rules and a language-model judge.

    python -m benchmarks.judges WORKSPACE… --local SMOLLM2 --out benchmarks/results/judges.json

On the test problems of finished runs of the profile `agents`, one workspace a seed; the oracle's verdicts are gold, and
thresholds of scores are chosen on the dev problems. The language-model judge is a server of this module that answers by
a made rule (a call that failed is wrong), with a verdict turned round by chance: its accuracy is the rule's and says
nothing of language models. It measures protocol, agreement, cost and latency. With --local a small model that runs here
is asked too, on few trajectories, with the same prompt and no repair of unusable answers.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.report import Bar, parsed, write
from prm_core import config as configuration
from prm_core.config import Config
from prm_core.evaluation.judges import cases, chart, comparison
from prm_core.evaluation.judges.base import JUDGES, Judge, Setup
from prm_core.evaluation.judges.models import LLM, ORM, PRM
from prm_core.evaluation.judges.rules import NAME as RULES
from prm_core.evaluation.protocol import STEP_CHAINS

STUB = "llm stub"
# Prices of a million tokens, in dollars: for the stub what a small hosted model costs; models here cost their machine.
PRICES = (0.15, 0.60)
FLIPPED, SURE = 0.05, 0.8
TEMPERATURE = 0.7
STUB_TRAJECTORIES, LOCAL_TRAJECTORIES = 200, 20
LOCAL_TOKENS = 400
RESAMPLES = 2000
REPEATS = 2
CHARACTERS_A_TOKEN = 4


class _Stub(BaseHTTPRequestHandler):
    """Answers the questions of `labeling/strategies/judge.py` by a rule."""

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """The list of models, which is asked for before anything else."""
        self._send({"object": "list", "data": []})

    def do_POST(self) -> None:
        """A chat completion."""
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        body = json.loads(text)
        given = json.loads(body["messages"][1]["content"])
        draw = random.Random(f"{body.get('seed')} {given['question']} {len(text)}")
        verdicts = []
        for step in given["steps"]:
            failed = any("error" in call for call in step.get("calls", ()))
            right = failed if draw.random() < FLIPPED else not failed
            verdicts.append({"step": step["step"], "reason": "a call failed" if failed else "no call failed",
                             "correct": right, "confidence": SURE})
        answer = json.dumps({"steps": verdicts})
        read, wrote = len(text) // CHARACTERS_A_TOKEN, len(answer) // CHARACTERS_A_TOKEN
        self._send({"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}],
            "usage": {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}})

    def _send(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def stub() -> Iterator[str]:
    """The base URL of a stub server, which ends with the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Stub)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def asking(config: Config, **settings: Any) -> Setup:
    """What a language-model judge with these settings is made with."""
    judge = replace(config.label.judge, retries=0, **settings)
    return Setup(replace(config, label=replace(config.label, judge=judge)), Path)


def measure(workspace: Path, local: Path | None, repeats: int) -> dict[str, Any]:
    """`all`: PRM, ORM and rules on every trajectory; `stub` and `local`: those beside a language model on few."""
    config = configuration.load(workspace)
    everything, dev = (cases.some(cases.read(workspace, "", tag), 0, STEP_CHAINS) for tag in ("test-base", "dev-base"))
    models, setup = workspace / "artifacts/train_prm", Setup(config, Path)
    judges = {PRM: JUDGES[PRM](str(models / "prm"), setup), RULES: JUDGES[RULES]("", setup),
              ORM: JUDGES[ORM](str(models / "orm"), setup)}
    for judge in judges.values():
        # A folder of this machine tells nobody else anything.
        judge.about = judge.about.replace(str(workspace), workspace.name)
    how = {"dev_name": "dev", "threshold": 0.5, "seed": config.seed}
    judged = comparison.judge_cases(judges, everything, dev, repeats=repeats, **how)

    def beside(name: str, judge: Judge, trajectories: int, times: int) -> dict[str, Any]:
        some = cases.some(everything, trajectories)
        kept = {case.id for case in some}
        # What the others said of these is known.
        rows = [row for row, case in enumerate(everything) if case.id in kept]
        others = {key: replace(one, runs=[[run[row] for row in rows] for run in one.runs])
                  for key, one in judged.items()}
        asked = comparison.judge_cases({name: judge}, some, [], repeats=times, **how)
        return comparison.compare(some, others | asked, RESAMPLES, config.seed)

    found = {"all": comparison.compare(everything, judged, RESAMPLES, config.seed)}
    with stub() as url:
        judge = JUDGES[LLM]("", asking(config, model="stub", endpoint=url, temperature=TEMPERATURE,
                                       input_price=PRICES[0], output_price=PRICES[1]))
        judge.about = f"a server that answers by a made rule, {FLIPPED:.0%} of its verdicts turned round"
        found["stub"] = beside(STUB, judge, STUB_TRAJECTORIES, repeats)
    if local is not None:
        judge = JUDGES[LLM](str(local), asking(config, endpoint="", temperature=0.0, max_new_tokens=LOCAL_TOKENS))
        judge.about = f"language model {local.name} on this machine"
        found["local"] = beside(LLM, judge, LOCAL_TRAJECTORIES, 1)
    return found


def bars(found: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    """Of each judge its figures, what it lacks of the PRM's, and its time: the median over workspaces, their range."""
    made = []
    for part, name, said in (("all", PRM, ""), ("all", ORM, ""), ("all", RULES, ""), ("stub", STUB, "'s made rule"),
                             ("local", LLM, f" ({LOCAL_TRAJECTORIES} trajectories)")):
        rows = [one[part]["judges"][name] for one in found.values() if part in one]
        for what, key, figure, factor in (
            ("first-error F1, %", "figures", "first_error_f1", 100),
            ("steps right, %", "figures", "step_accuracy", 100), ("steps judged, %", "figures", "judged", 100),
            ("first-error F1 - the PRM's, points", "minus_first", "first_error_f1", 100),
            ("ms a trajectory, median", "latency", "median", 1000),
        ):
            values = [factor * row[key][figure]["value"] for row in rows if figure in row.get(key, {})]
            if values:
                made.append(Bar(f"{name}{said}: {what}, median of {len(values)}", statistics.median(values),
                                min(values), max(values), "reported", True))
    return made


def main() -> None:
    """Measures every workspace; writes, prints and draws the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judges")
    parser.add_argument("workspaces", nargs="+", type=Path, help="finished runs of the profile agents")
    parser.add_argument("--local", type=Path, help="folder of a small language model that judges on this machine")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="times that every trajectory is judged")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write; a chart is drawn beside it")
    given = parsed(parser)
    found = {}
    for number, workspace in enumerate(given.workspaces):
        found[workspace.name] = measure(workspace, None if number else given.local, given.repeats)
    write(given, bars(found), workspaces=found)
    chart.draw(next(iter(found.values()))["stub"], given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

"""`prm judge` on many traces: how long a first pass takes, and what a second one costs and writes.

    python -m benchmarks.judge [--quick] --out benchmarks/results/judge.json

Traces of 20 spans, an agent whose model and tools take turns, lie in a store of the benchmark's own, a SQLite file. The
model has the default profile's size and random weights: what it says is nothing, what it costs is the same. Then
another version judges some of the traces again, and has to leave as many scores as there were.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import sqlite3
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import Bar, arguments, write
from prm_core import config as configuration
from prm_core.platform import tracking
from prm_core.serving.trace_judge import Judge
from prm_core.serving.trace_pass import Outcome, Selection, judge_traces

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "agents"
ROOT = Path(__file__).parents[1]
TRACES, SPANS, QUICK, AGAIN = 1000, 20, 60, 20
SHARE = 0.2
WORDS = ["the", "agent", "looks", "up", "a", "price", "and", "adds", "3", "to", "4", "which", "makes", "7"]


def span_id(number: int) -> str:
    """A span's id as a trace's JSON has it, of a number from 1 on."""
    return base64.b64encode(number.to_bytes(8, "big")).decode()


def span(own: int, kind: str, inputs: Any = None, outputs: Any = None, parent: int | None = None, name: str = "s"
         ) -> dict[str, Any]:
    """A span in a trace's JSON; it starts at its own number."""
    values = {"spanType": kind, "spanInputs": inputs, "spanOutputs": outputs}
    return {"span_id": span_id(own), "parent_span_id": parent and span_id(parent), "name": name,
            "start_time_unix_nano": own, "end_time_unix_nano": own + 1,
            "status": {"code": "STATUS_CODE_OK", "message": ""}, "events": [],
            "attributes": {f"mlflow.{key}": json.dumps(value) for key, value in values.items() if value is not None}}


def agent_run(texts: Sequence[str], tools: int, prompt: str = "What do 3 and 4 make?") -> list[dict[str, Any]]:
    """Spans of an agent that says these texts, a tool replying after each of the first `tools`."""
    spans = [span(1, "AGENT", {"question": prompt})]
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    for number, text in enumerate(texts):
        said: dict[str, Any] = {"role": "assistant", "content": text}
        if number < tools:
            function = {"name": "look", "arguments": json.dumps({"q": number})}
            said["tool_calls"] = [{"id": f"call-{number}", "type": "function", "function": function}]
        spans.append(span(len(spans) + 1, "CHAT_MODEL", {"messages": list(messages)}, {"choices": [{"message": said}]},
                          parent=1, name="chat"))
        messages.append(said)
        if number < tools:
            spans.append(span(len(spans) + 1, "TOOL", {"q": number}, f"reply {number}", parent=1, name="look"))
    return spans


def place(client: MlflowClient, experiment: str, number: int, spans: Sequence[Mapping[str, Any]], state: str = "OK"
          ) -> str:
    """Puts a trace into the store, its start `number` ms after 1970; returns its id."""
    from mlflow.entities import Span, TraceInfo, TraceLocation, TraceState

    trace_id = f"tr-{number:032x}"
    own = {"trace_id": base64.b64encode(number.to_bytes(16, "big")).decode()}
    times = ("start_time_unix_nano", "end_time_unix_nano")
    whole = [{**own, **one, **{name: one[name] + number * 10**6 for name in times},
              "attributes": {**one["attributes"], "mlflow.traceRequestId": json.dumps(trace_id)}} for one in spans]
    store = client._tracing_client.store
    # What the spans say of the trace comes first: the trace's own word is the last.
    store.log_spans(experiment, [Span.from_dict(one) for one in whole])
    store.start_trace(TraceInfo(trace_id, TraceLocation.from_experiment_id(experiment), number, TraceState(state),
                                execution_duration=5))
    return trace_id


def make_model(folder: Path, seed: int) -> Path:
    """A reward model of the default profile's size, of random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForTokenClassification

    from prm_core.models.encoder import Encoder
    from prm_core.models.tokenizer import train_tokenizer
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.reward import ProcessRewardModel
    from prm_core.scoring.scorer import save_reward_model

    config = configuration.load(ROOT)
    encoding = dataclasses.replace(config.encoder, max_length=1024)
    encoder = Encoder(train_tokenizer([" ".join(WORDS)], encoding.separator), encoding)
    torch.manual_seed(seed)
    size = config.warmup
    network = LlamaForTokenClassification(LlamaConfig(
        vocab_size=len(encoder.tokenizer), hidden_size=size.hidden_size, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, intermediate_size=size.intermediate_size,
        max_position_embeddings=encoding.max_length, num_labels=2))
    model = ProcessRewardModel(network, dataclasses.asdict(encoding)).eval()
    save_reward_model(model, encoder, Calibrator("identity", 0), folder)
    return folder


def rows(database: Path) -> int:
    """Assessments in the store."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT count(*) FROM assessments").fetchone()[0]


def one_pass(folder: Path, model: Path, limit: int | None = None) -> tuple[float, Outcome, int]:
    """Seconds of a pass, what it did, and the assessments there are then."""
    started = time.monotonic()
    outcome = judge_traces(Judge(str(model), folder), Selection([EXPERIMENT], limit=limit), folder)
    return time.monotonic() - started, outcome, rows(folder / "mlflow.db")


def main() -> None:
    """Places the traces, measures the passes and writes the result."""
    given = arguments("judge")
    count = QUICK if given.quick else TRACES
    with tempfile.TemporaryDirectory(prefix="prm-judge-") as scratch:
        folder = Path(scratch)
        first_model, second_model = (make_model(folder / f"model-{seed}", seed) for seed in (0, 1))
        client = tracking.connect(folder)
        experiment = client.create_experiment(EXPERIMENT)
        steps = SPANS // 2
        for number in range(count):
            texts = [" ".join(WORDS[(number + step + word) % len(WORDS)] for word in range(12))
                     for step in range(steps)]
            place(client, experiment, number + 1, agent_run(texts, SPANS - 1 - steps))
        first, one, before = one_pass(folder, first_model)
        second, two, after = one_pass(folder, first_model)
        again, three, then = one_pass(folder, second_model, limit=AGAIN)
    bars = [
        Bar("steps without a score after the first pass", count * steps - before, None, None, "0",
            before == count * steps == one.written),
        Bar("new rows of the second pass", after - before, None, None, "0", (after, two.written) == (before, 0)),
        Bar("time of the second pass, share of the first", second / first, None, None, f"<= {SHARE}",
            second <= SHARE * first),
        Bar("rows more after another version", then - before, None, None, "0",
            then == before and three.removed == three.written == AGAIN * steps),
    ]
    write(given, bars, traces=count, spans=SPANS, steps=steps, seconds_first=first, seconds_second=second,
          seconds_another_version=again, traces_another_version=AGAIN, ms_a_score=1000 * first / (count * steps))


if __name__ == "__main__":
    main()

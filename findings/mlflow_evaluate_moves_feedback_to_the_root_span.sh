#!/bin/sh
# mlflow 3.17.2 (PyPI): feedback that a scorer returns with a span_id is stored on the trace's root span by
# `mlflow.genai.evaluate`, whichever span it names.
#
# Feedback has a field span_id, documented as the span it is associated with, and log_feedback keeps it. A scorer that
# judges a trace's spans one by one would return a Feedback for each, its span_id set. `evaluate` writes the root's over
# all of them: what was said of two spans can then no longer be told apart, and nothing is logged about it. (So step
# scores must be logged by the scorer itself.)
#
# Seen:
#   returned by a scorer: [('root', 0.1), ('root', 0.9)]
#   log_feedback: [('first', 0.1), ('second', 0.9)]
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check mlflow==3.17.2
cat > look.py <<'PY'
import mlflow
from mlflow.entities import Feedback
from mlflow.genai.scorers import scorer

mlflow.set_tracking_uri("sqlite:///look.db")
with mlflow.start_span("root"):
    for name in ("first", "second"):
        with mlflow.start_span(name):
            pass
mlflow.flush_trace_async_logging()
(trace,) = mlflow.search_traces(return_type="list")
ids = {span.name: span.span_id for span in trace.data.spans}
names = {own: name for name, own in ids.items()}
values = {"first": 0.1, "second": 0.9}


@scorer
def returned(trace):
    return [Feedback(name="returned", value=value, span_id=ids[name]) for name, value in values.items()]


mlflow.genai.evaluate(data=[trace], scorers=[returned])
for name, value in values.items():
    mlflow.log_feedback(trace_id=trace.info.trace_id, name="logged", value=value, span_id=ids[name])
found = {"returned": [], "logged": []}
for one in mlflow.get_trace(trace.info.trace_id).info.assessments:
    found[one.name].append((names[one.span_id], one.value))
print("returned by a scorer:", sorted(found["returned"]))
print("log_feedback:", sorted(found["logged"]))
assert sorted(found["returned"]) == [("root", 0.1), ("root", 0.9)], found
assert sorted(found["logged"]) == [("first", 0.1), ("second", 0.9)], found
PY
env MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true env/bin/python look.py 2> errors || { cat errors; exit 1; }

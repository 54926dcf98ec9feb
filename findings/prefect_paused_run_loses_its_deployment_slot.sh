#!/bin/sh
# Prefect 3.8.8: a deployment's concurrency limit ends a run that paused. On the pause the server frees the run's slot and
# revokes its lease; on resume nothing takes the slot again, while the engine goes on renewing the lease that is gone: at
# the next renewal (225 s apart) the run is crashed. Without a limit the same run completes. One would expect a paused
# run either to keep its slot or to get a new one when it goes on.
#
# The interval is shortened here to three seconds; everything else is as users have it.
#
# Seen (among the log):
#   limit 1 -> CRASHED
#   limit None -> COMPLETED
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check prefect==3.8.8 fastapi==0.150.0 starlette==1.10.0
cat > look.py <<'PY'
import threading
import time

import prefect.concurrency._leases as leases
from prefect import flow, get_client, pause_flow_run
from prefect.flow_engine import run_flow
from prefect.flow_runs import resume_flow_run
from prefect.states import Pending
from prefect.testing.utilities import prefect_test_harness

leases._RENEWAL_FRACTION = 0.01


@flow
def waits():
    pause_flow_run(timeout=60, poll_interval=1)
    time.sleep(8)


def end_of(client, limit):
    """The state that a paused and resumed run of a deployment with this concurrency limit ends in."""
    deployment = client.create_deployment(
        client.create_flow(waits), f"limit-{limit}", **({} if limit is None else {"concurrency_limit": limit}))
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Pending())
    threading.Timer(5, resume_flow_run, (run.id,)).start()
    try:
        run_flow(waits, flow_run=client.read_flow_run(run.id), return_type="state")
    except BaseException as error:
        print("the run was ended by", type(error).__name__)
    return client.read_flow_run(run.id).state.type.value


with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as client:
    ends = {limit: end_of(client, limit) for limit in (1, None)}
for limit, end in ends.items():
    print("limit", limit, "->", end)
assert ends == {1: "CRASHED", None: "COMPLETED"}, ends
PY
PREFECT_HOME="$work/home" PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 env/bin/python look.py

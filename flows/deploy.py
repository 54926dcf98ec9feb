"""`make deploy`: what a Prefect server needs to run the flows of prefect.yaml: work pool, deployments, automations.

    PRM_ALERT_URL=https://… python -m flows.deploy

The automations are the server's, and so they work where the process of a run is gone: a run that failed, crashed or ran
out of time is told of at PRM_ALERT_URL, by a POST with a JSON object; one of which nothing has been heard for several
heartbeats is marked as crashed, so that it does not stay RUNNING for ever. Deploying again replaces them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import timedelta

from prefect.automations import AutomationCore
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY

from flows.server import API_URL
from prm_core.cli import failures
from prm_core.errors import InputError

POOL = "local"
ALERT_URL = "PRM_ALERT_URL"
ALERT, GONE = "prm: a run failed", "prm: a run has gone silent"
BLOCK = "prm-alert"
BEATS = 4
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut")}
BAD = {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")}
RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
MESSAGE = {
    "text": "{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.name }}",
    "flow": "{{ flow.name }}", "run": "{{ flow_run.name }}", "id": "{{ flow_run.id }}",
    "state": "{{ flow_run.state.name }}", "type": "{{ flow_run.state.type.value }}", "url": "{{ flow_run|ui_url }}",
}


def deploy() -> None:
    """Registers all of it with the server that PREFECT_API_URL names. Raises InputError without one."""
    if not os.environ.get(API_URL):
        raise InputError(f"{API_URL} names no server; `make ui` starts one at http://127.0.0.1:4200/api")
    prefect = [sys.executable, "-m", "prefect"]
    known = subprocess.run([*prefect, "work-pool", "inspect", POOL], capture_output=True)
    if known.returncode:
        subprocess.run([*prefect, "work-pool", "create", POOL, "--type", "process"], check=True)
    subprocess.run([*prefect, "--no-prompt", "deploy", "--all"], check=True)
    with get_client(sync_client=True) as client:
        automate(client, os.environ.get(ALERT_URL), PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value())


def automate(client: SyncPrefectClient, alert_url: str | None, heartbeat: int | None) -> None:
    """Has the server tell of failures, where there is an address, and mark runs that have gone silent.

    Args:
        alert_url: where to; None or empty: failures are not told of, and no longer if they were.
        heartbeat: seconds between two signs of life of a run; None: there are none to go by.
    """
    for name in (ALERT, GONE):
        for old in client.read_automations_by_name(name):
            client.delete_automation(old.id)
    if heartbeat:
        silent = EventTrigger(
            after={HEARTBEAT}, expect={HEARTBEAT, *ENDED}, match=RUNS, for_each={"prefect.resource.id"},
            posture=Posture.Proactive, threshold=1, within=timedelta(seconds=BEATS * heartbeat),
        )
        crashed = ChangeFlowRunState(state=StateType.CRASHED, message="nothing was heard of its process any more")
        client.create_automation(AutomationCore(name=GONE, trigger=silent, actions=[crashed]))
    if alert_url:
        block = Webhook(url=alert_url).save(BLOCK, overwrite=True)
        failed = EventTrigger(expect=BAD, match=RUNS, posture=Posture.Reactive, threshold=1, within=timedelta(0))
        tell = CallWebhook(block_document_id=block, payload=json.dumps(MESSAGE))
        client.create_automation(AutomationCore(name=ALERT, trigger=failed, actions=[tell]))


def main() -> None:
    """The command line, which has nothing to say."""
    argparse.ArgumentParser(prog="python -m flows.deploy", description=__doc__.splitlines()[0]).parse_args()
    with failures.told():
        deploy()


if __name__ == "__main__":
    main()

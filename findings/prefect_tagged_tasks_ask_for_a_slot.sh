#!/bin/sh
# prefect 3.8.8 (PyPI): a tag on a flow run makes each of its tasks ask the server for a concurrency slot of that tag's
# name before it starts, though nobody has set a limit of that name.
#
# One would expect a tag to be a label, free where no limit exists. The flow's tags are its tasks' too; each task then
# makes one more request that writes, and where a server on SQLite answers that it is busy (503), the client waits two
# seconds and asks again: in our use four of eleven tasks in a row waited so. Here only the requests are counted.
#
# Seen:
#   without a tag: 0 of 3 tasks ask for a slot
#   with a tag: 3 of 3 tasks ask for a slot
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check prefect==3.8.8 "fastapi<0.151"
cat > look.py <<'PY'
import sys

from prefect import flow, tags, task


@task
def nothing():
    pass


@flow
def three():
    for _ in range(3):
        nothing()


with tags(*sys.argv[1:]):
    three()
PY
asked() {
    env PREFECT_HOME="$work/home" PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 PREFECT_LOGGING_LEVEL=DEBUG \
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=120 env/bin/python look.py "$@" 2>&1 |
        grep -c "Concurrency limits \['tag:.*do not exist" || true
}
without=$(asked); with=$(asked label)
echo "without a tag: $without of 3 tasks ask for a slot"
echo "with a tag: $with of 3 tasks ask for a slot"
test "$without" = 0 && test "$with" = 3

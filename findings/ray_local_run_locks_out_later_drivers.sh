#!/bin/sh
# ray 2.60.0 (PyPI): once a program has called ray.init(address="local") on a machine, a default driver can no longer join
# a cluster that is started there by a default `ray start --head`.
#
# One would guess that a local run leaves nothing behind. It writes ~/.ray/auth_token. `ray start` takes a token that lies
# there for a wish and asks every process for it; ray.init(address="HOST:PORT") does not, although it runs as the same
# user on the same machine and the token lies where it would look: it fails with a ConnectionError whose cause's cause is
# "InvalidAuthToken". RAY_AUTH_MODE=token in the driver's environment lets it in.
#
# Seen:
#   before a local run: joined
#   after a local run: ConnectionError
#   after a local run, RAY_AUTH_MODE=token: joined
set -e
work=$(mktemp -d); cd "$work"; head=
# `ray start --block` ends its processes, which are groups of their own, when it is told to end.
end() { [ -z "$head" ] || { kill -TERM "$head"; wait "$head" || true; } 2> /dev/null; head=; }
trap 'end; rm -rf "$work"' EXIT
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check ray==2.60.0
export HOME="$work" RAY_USAGE_STATS_ENABLED=0 RAY_DISABLE_IMPORT_WARNING=1
unset RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_ADDRESS
cat > join.py <<'PY'
import logging
import sys

import ray

try:
    ray.init(address=sys.argv[1], logging_level=logging.CRITICAL, include_dashboard=None)
    print("joined")
except ConnectionError as error:
    print(type(error).__name__)
PY
begin() {
    port=$(env/bin/python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
    env/bin/ray start --head --block --port="$port" --num-cpus=1 --include-dashboard=false \
        --object-store-memory=100000000 > head.log 2>&1 &
    head=$!
    for _ in $(seq 90); do
        # Its own processes know the token; what counts is a driver without.
        RAY_AUTH_MODE=${1:-disabled} env/bin/ray status --address="127.0.0.1:$port" 2> /dev/null | grep -q node_ && return
        sleep 1
    done
    cat head.log; exit 1
}
join() { env/bin/python join.py "127.0.0.1:$port" 2> /dev/null | tail -n 1; }
begin; before=$(join); end
env/bin/python -c 'import ray; ray.init(address="local", num_cpus=1, include_dashboard=False)' > local.log 2>&1
begin token; after=$(join); told=$(RAY_AUTH_MODE=token join); end
echo "before a local run: $before"
echo "after a local run: $after"
echo "after a local run, RAY_AUTH_MODE=token: $told"
[ "$before" = joined ] && [ "$after" = ConnectionError ] && [ "$told" = joined ]

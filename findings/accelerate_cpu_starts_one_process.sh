#!/bin/sh
# accelerate 1.15.0 (PyPI): `accelerate launch --cpu --num_processes 2` starts one process, and says nothing of it.
#
# One would guess that it starts two, which would find each other over gloo: that is what --num_processes is for. So a test
# of distributed training on a machine without a GPU passes without ever having been distributed. It is --multi_gpu that
# starts two there, GPU or not.
#
# Seen:
#   --cpu: rank None of None
#   --multi_gpu: rank 0 of 2, rank 1 of 2
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check accelerate==1.15.0 torch==2.13.0 numpy
cat > look.py <<'PY'
import os
from pathlib import Path

rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
Path("seen", f"{rank}").write_text(f"rank {rank} of {count}")
PY
seen() {
    rm -rf seen; mkdir seen
    CUDA_VISIBLE_DEVICES= env/bin/accelerate launch "$1" --num_processes 2 --main_process_port 0 look.py > log 2>&1 \
        || { cat log; exit 1; }
    for file in seen/*; do cat "$file"; printf ', '; done | sed 's/, $//'
}
cpu=$(seen --cpu); gpu=$(seen --multi_gpu)
echo "--cpu: $cpu"; echo "--multi_gpu: $gpu"
[ "$cpu" = "rank None of None" ] && [ "$gpu" = "rank 0 of 2, rank 1 of 2" ]

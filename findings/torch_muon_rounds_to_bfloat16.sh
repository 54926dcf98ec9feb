#!/bin/sh
# torch 2.13 (PyPI): torch.optim.Muon computes its Newton-Schulz iterations in bfloat16 whatever the parameters are, with
# no setting to change that. A processor without instructions for bfloat16 then multiplies in software.
#
# One would expect an optimiser of float32 parameters to compute in float32 (or to offer it), as the method does not need
# the rounding; the cost is many times that of float32 on such a processor. ONEDNN_MAX_CPU_ISA=AVX2 and
# ATEN_CPU_CAPABILITY=avx2 stand in for one here. The first line shows the rounding: the update of a float32 matrix, where
# the step size is a power of two, is a bfloat16 matrix.
#
# Seen (the times depend on the machine):
#   update is bfloat16: True
#   21 matrices, torch.optim.Muon 149 ms; the same iteration in float32 9 ms
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 numpy
cat > look.py <<'PY'
import time

import torch
from torch.optim import _muon

torch.set_num_threads(1)
torch.manual_seed(0)
square = torch.nn.Parameter(torch.zeros(8, 8))
square.grad = torch.randn(8, 8)
torch.optim.Muon([square], lr=1.0, weight_decay=0.0).step()
rounded = torch.equal(square, square.bfloat16().float())
print("update is bfloat16:", rounded)


def milliseconds(work):
    work()
    start = time.process_time()
    for _ in range(5):
        work()
    return (time.process_time() - start) / 5 * 1e3


def in_float32(matrix, iterations=5):
    a, b, c = _muon.DEFAULT_A, _muon.DEFAULT_B, _muon.DEFAULT_C
    matrix = matrix / matrix.norm()
    for _ in range(iterations):
        gram = matrix @ matrix.T
        matrix = torch.addmm(matrix, torch.addmm(gram, gram, gram, beta=b, alpha=c), matrix, beta=a)


matrices = [torch.nn.Parameter(torch.randn(96, 96 if i < 12 else 256)) for i in range(21)]
for matrix in matrices:
    matrix.grad = torch.randn_like(matrix)
optimizer = torch.optim.Muon(matrices)
theirs = milliseconds(optimizer.step)
ours = milliseconds(lambda: [in_float32(matrix.grad) for matrix in matrices])
print(f"21 matrices, torch.optim.Muon {theirs:.0f} ms; the same iteration in float32 {ours:.0f} ms")
assert rounded and theirs > 3 * ours
PY
ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 env/bin/python look.py

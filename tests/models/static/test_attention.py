"""The kernel's results are those of the library's attention; where Triton is there, by its interpreter."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests import ROOT

SCRIPT = """
import torch
from prm_core.models.static import attention
torch.manual_seed(0)
for rows, tokens, heads, own, width, slots, columns, programs in (
        (2, 5, 4, 2, 16, 3, 128, 264), (3, 1, 14, 2, 64, 3, 192, 1), (1, 30, 28, 4, 32, 2, 448, 264)):
    attention.PROGRAMS = programs
    query = torch.randn(rows, tokens, heads, width)
    keys, values = torch.randn(2, slots, own, columns, width)
    given = (query, keys, values, torch.randperm(slots)[:rows], torch.randint(columns - tokens, (rows,)), width**-0.5)
    torch.testing.assert_close(attention.attend_fused(*given), attention.attend_plain(*given), atol=1e-5, rtol=1e-5)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_is_the_librarys_attention() -> None:
    done = subprocess.run([sys.executable, "-c", "import os; os.environ['TRITON_INTERPRET'] = '1'" + SCRIPT], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

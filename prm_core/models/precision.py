"""Which precision a device computes in: bfloat16 where it has the instructions for products of it, else float32.

Instructions are read, not products timed: the same machine must choose the same every time, however busy it is.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.config import Config
from prm_core.models.loading import load_config, pick_device

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

CPU_INFO = Path("/proc/cpuinfo")
# Flags of x86 and ARM. ARM's float16 is left out: whether PyTorch's products use it is not known.
INSTRUCTIONS = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16"}}
# What caps the instructions that PyTorch's products use, and the caps under which those above are not among them.
CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
TOO_LOW = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


def resolve(config: Config) -> Config:
    """The config with the precisions its device will compute in where it says `auto`."""
    device = pick_device(config.models.device)
    return dataclasses.replace(
        config, models=dataclasses.replace(config.models, dtype=choose(config.models.dtype, device, "models.dtype")),
        **{name: dataclasses.replace(section, precision=choose(section.precision, device, f"{name}.precision"))
           for name, section in (("warmup", config.warmup), ("train_prm", config.train_prm))})


def choose(wanted: str, device: torch.device, setting: str) -> str:
    """float32, bfloat16 or float16, as wanted; of `auto`, bfloat16 where the device multiplies in it, else float32.

    What was chosen, and an order that the device is slow to follow, are logged once.

    Args:
        setting: the key that says what is wanted.
    """
    fast, why = is_fast("bfloat16" if wanted == "auto" else wanted, device)
    if wanted == "auto":
        chosen = "bfloat16" if fast else "float32"
        _say(logging.INFO, f"{setting} auto: {chosen}, {why}")
        return chosen
    if not fast and device.type == "cpu":
        _say(logging.WARNING, f"{setting} is {wanted}, and {why}: products were measured 30 times slower than in "
                              f"float32; set {setting} to auto or float32")
    return wanted


def as_saved(path: str, device: torch.device) -> str:
    """The `dtype` to load a saved model with: `auto`, which is that of its weights, or float32 where the device is slow
    in that one. Raises InputError when its `config.json` does not load."""
    saved = str(getattr(load_config(path), "dtype", None)).removeprefix("torch.")
    fast, why = is_fast(saved, device)
    if not fast:
        _say(logging.INFO, f"{path}: saved in {saved}, computed in float32: {why}")
    return "auto" if fast else "float32"


def is_fast(dtype: str, device: torch.device) -> tuple[bool, str]:
    """Whether products of a type are as fast as those of float32 or faster, and why."""
    if dtype not in INSTRUCTIONS or (device.type == "cuda" and dtype == "float16"):
        return True, f"{dtype} is computed everywhere"
    if device.type == "cuda":
        import torch

        with torch.cuda.device(device):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return fast, f"this GPU {'has' if fast else 'has no'} bfloat16"
    if device.type != "cpu":
        return False, f"whether {device.type} is fast in {dtype} is not known"
    if not INSTRUCTIONS[dtype] & _flags():
        return False, f"this processor has no {dtype} instructions"
    for name in CAPS:
        if os.environ.get(name, "").upper() in TOO_LOW:
            return False, f"{name}={os.environ[name]} leaves the processor's {dtype} instructions unused"
    return True, f"this processor has {dtype} instructions"


def _flags() -> set[str]:
    """The instructions that the first processor names; none where the system does not tell."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return set()
    # x86 calls them flags, ARM Features.
    named = (line.partition(":") for line in lines)
    return next((set(values.split()) for name, _, values in named if name.strip() in ("flags", "Features")), set())


@cache
def _say(level: int, text: str) -> None:
    log.log(level, text)

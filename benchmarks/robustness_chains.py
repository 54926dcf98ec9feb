"""One whole chain in a scratch workspace: made from its seed, run stage by stage, and how long every stage took.

A chain that was stopped goes on at the stage it was in. What a finished one shows is in `robustness_figures.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.report import machine
from benchmarks.robustness_figures import ORACLE, Record, collect
from prm_core import config as configuration
from prm_core.errors import InputError
from prm_core.platform import store, sums
from prm_core.platform.tracking import code_version
from prm_core.problems.embedded import make_data
from prm_core.stages.base import CHAIN

ROOT = Path(__file__).parents[1]
PROGRESS, LOG = "progress.json", "log.txt"
# Registering shows nothing that is measured here.
STAGES = tuple(name for name in CHAIN if name != "register")
PLAIN, PERTURBED, THREADS, AVX2 = "", "perturbed", "threads", "avx2"
# Of half a unit in the last place of a float32, as another order of additions leaves behind.
ROUNDING = 1e-7
# What PyTorch, its two libraries and NumPy's then take the processor for.
AS_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
           "OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"}
LAST_WORDS = 1500


class ChainFailed(Exception):
    """A stage of a chain ended with an error: which, and its last words."""


@dataclass(frozen=True, slots=True)
class Run:
    """A chain to run.

    Attributes:
        level: the profile: `default`, `hard`, `smoke`.
        seed: of everything, data too.
        variant: how it stands in for another processor, see `check_variant`; empty: as this one computes.
    """

    level: str
    seed: int
    variant: str = PLAIN

    @property
    def name(self) -> str:
        """Names its folder and its record."""
        return "-".join(filter(None, (self.level, str(self.seed), self.variant)))


def check_variant(name: str) -> None:
    """Raises InputError unless it is `perturbed-K` (the warm-up's weights moved by rounding, with seed K), `threads-N`
    or `avx2`."""
    if not re.fullmatch(rf"({PERTURBED}|{THREADS})-[1-9]\d*", name) and name != AVX2:
        raise InputError(f"--variants {name}: no stand-in for another processor; known: perturbed-K (seed K of the "
                         f"noise in the weights), threads-N, {AVX2}")


def environment(variant: str, threads: int) -> dict[str, str]:
    """What a chain's processes run in."""
    kind, _, number = variant.partition("-")
    own = AS_AVX2 if kind == AVX2 else {}
    return {**os.environ, "OMP_NUM_THREADS": number if kind == THREADS else str(threads), **own}


def code_of(run: Run, threads: int) -> str:
    """What a run's result depends on: the package's code, the resolved profile, threads."""
    code = store.digest(*sorted((ROOT / "prm_core").rglob("*.py")))
    return hashlib.sha256(json.dumps([code, resolved(run), threads]).encode()).hexdigest()[:16]


def resolved(run: Run) -> dict[str, object]:
    """The profile with the run's seed."""
    return {**configuration.resolve(ROOT / configuration.PARAMS_FILE, run.level), "seed": run.seed}


def run_chain(run: Run, work: Path, threads: int, *, any_code: bool = False) -> Record:
    """Runs what is not yet done of a chain and collects its figures.

    Args:
        run: which chain.
        work: folder of the workspaces, one a chain.
        threads: of each process, where the variant does not say.
        any_code: whether what other code has done counts as done; it is done anew otherwise.

    Raises ChainFailed.
    """
    folder = work / run.name
    code = code_of(run, threads)
    progress = _begin(run, folder, code, any_code)
    for name in (*STAGES, ORACLE):
        if name in progress["seconds"]:
            continue
        perturbed = name == "warmup" and run.variant.startswith(PERTURBED)
        if perturbed and _take_warmup(run, work, threads):
            took = {"wall": 0.0, "cpu": 0.0}
        else:
            took = _timed(name, run, folder, threads)
        if perturbed:
            perturb(folder / "artifacts/warmup", int(run.variant.removeprefix(f"{PERTURBED}-")))
        if not any_code and code_of(run, threads) != code:
            raise ChainFailed(f"the code changed while stage {name} of {run.name} ran; leave the checkout alone, or "
                              "run in a worktree of its own")
        progress["seconds"][name] = took
        store.write_json(folder / PROGRESS, progress)
    config = configuration.load(folder)
    return {"name": run.name, "level": run.level, "seed": run.seed, "variant": run.variant, **progress,
            "figures": collect(folder, config)}


def _begin(run: Run, folder: Path, code: str, any_code: bool) -> Record:
    """The workspace, made unless it is there; what is done in it."""
    if (folder / PROGRESS).is_file():
        progress = store.read_json(folder / PROGRESS)
        if any_code or progress["code"] == code:
            return progress
        shutil.rmtree(folder)
    elif folder.exists():
        raise InputError(f"--work {folder.parent}: {folder.name} in it is no workspace of this benchmark; name another "
                         "folder")
    new = folder.with_name(f".{run.name}")
    # Of a call that was stopped here.
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    raw = resolved(run)
    store.write_text(new / configuration.PARAMS_FILE, yaml.safe_dump(raw, sort_keys=False))
    make_data(new / "data", configuration.parse(raw, run.name))
    progress = {"code": code, "commit": code_version(), "machine": machine(), "seconds": {}}
    store.write_json(new / PROGRESS, progress)
    new.rename(folder)
    return progress


def _take_warmup(run: Run, work: Path, threads: int) -> bool:
    """Takes the warm-up of the plain chain with this seed where that has one: this chain's would come out the same."""
    plain = Run(run.level, run.seed)
    folder = work / plain.name
    progress = store.read_json(folder / PROGRESS) if (folder / PROGRESS).is_file() else {}
    if progress.get("code") != code_of(plain, threads) or "warmup" not in progress["seconds"]:
        return False
    shutil.copytree(folder / "artifacts/warmup", work / run.name / "artifacts/warmup", dirs_exist_ok=True)
    return True


def perturb(warmup: Path, seed: int) -> None:
    """Multiplies every weight of the warm-up's models by 1 + ROUNDING x normal noise, and renews the digests.

    Args:
        warmup: the stage's artifacts.
        seed: of the noise.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    noise = torch.Generator().manual_seed(seed)
    for path in sorted(warmup.glob("models/*/model.safetensors")):
        with safe_open(path, "pt") as file:
            metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in sorted(file.keys())}
        for name, weight in weights.items():
            if weight.is_floating_point():
                factor = 1 + ROUNDING * torch.randn(weight.shape, generator=noise, dtype=torch.float64)
                weights[name] = (weight.double() * factor).to(weight.dtype)
        save_file(weights, path, metadata)
        sums.write_sums(path.parent)
    sums.write_sums(warmup)


def _timed(stage: str, run: Run, folder: Path, threads: int) -> dict[str, float]:
    """Runs a stage in a process of its own; its seconds, with all processes that it starts."""
    command = ["-m", "benchmarks.robustness_figures", str(folder)] if stage == ORACLE else [
        "-m", "prm_core.cli", "stage", stage, "--workspace", str(folder)]
    start = time.monotonic()
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment(run.variant, threads),
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        # The one way to learn the processor time of this child and no other.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = (folder / LOG).read_text(errors="replace")[-LAST_WORDS:]
        raise ChainFailed(f"stage {stage} of {run.name} ended with {process.returncode}: {said}")
    return {"wall": round(time.monotonic() - start, 1), "cpu": round(usage.ru_utime + usage.ru_stime, 1)}

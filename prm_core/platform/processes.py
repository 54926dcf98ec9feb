"""One command in several processes: started here, ended together, and what went wrong in one of them told once.

Those that torchrun or `accelerate launch` start find each other and compare what they are about to do in the same way.
What is shared out among them is nobody's business here (prm_core/training/data_parallel.py).
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from prm_core.errors import InputError
from prm_core.platform import workers

# The folder into which a process that was launched here writes why it failed.
_REPORTS = "PRM_LAUNCHED"
_LOOK_SECONDS = 0.05
# When one has failed, the others fail too: whoever waits for it notices. What did not end by then is ended.
_END_SECONDS = 10.0
# Processes wait for each other as long as it takes; whoever launched them ends them when one is gone.
_PATIENCE = timedelta(days=1)


def count() -> int:
    """Processes that do the work of this one together, itself among them."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def launch(number: int, command: Sequence[str]) -> bool:
    """Runs a command in several processes of this machine, as the ranks of one torch process group.

    The first one's output is this process's; what the others say is shown where one of them ends without a reason. They
    share the processor's cores, and end with this process, whatever ends it.

    Args:
        number: of processes.
        command: a program and its arguments, which comes by `member`.

    Returns False, having done nothing, where one process is enough or this one is one of several already.

    Raises what the first of them to fail raised, and WorkerDied where one was killed.
    """
    if number == 1 or "RANK" in os.environ:
        return False
    with tempfile.TemporaryDirectory(prefix="prm-processes-") as name:
        folder, started = Path(name), []
        shared = {
            "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": str(max(workers.cores() // number, 1)), _REPORTS: name,
        }
        try:
            for rank in range(number):
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                with _log(folder, rank).open("wb") as log:
                    output = {} if rank == 0 else {"stdout": log, "stderr": subprocess.STDOUT}
                    # Their standard input ends when this process does.
                    started.append(subprocess.Popen(list(command), env={**os.environ, **shared, **place},
                                                    stdin=subprocess.PIPE, **output))
            while None in (codes := [process.poll() for process in started]) and not any(codes):
                time.sleep(_LOOK_SECONDS)
        finally:
            codes = _end(started)
        if any(codes):
            raise _cause(folder, codes)
    return True


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _log(folder: Path, rank: int) -> Path:
    return folder / f"log-{rank}"


def _report(folder: Path, rank: int) -> Path:
    return folder / f"failure-{rank}"


def _end(started: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Ends the processes; returns the exit codes of those that had ended by themselves by then."""
    deadline = time.monotonic() + _END_SECONDS
    for process in started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0))
    codes = [process.poll() for process in started]
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
    return codes


def _cause(folder: Path, codes: Sequence[int | None]) -> BaseException:
    """Why they ended: one was killed, else what the first one to fail raised; the others failed for want of it."""
    for rank, code in enumerate(codes):
        # One that has said why may be aborted after: torch's threads are not always through when the interpreter is.
        if code is not None and (code < 0 or code > 128) and not _report(folder, rank).exists():
            number = -code if code < 0 else code - 128
            return workers.WorkerDied(
                f"process {rank} of {len(codes)} was ended by signal {number} (out of memory?), and the others with "
                "it; run the same command again: it goes on from the last checkpoint. A smaller launch.processes takes "
                "less memory")
    reports = [path for rank in range(len(codes)) if (path := _report(folder, rank)).exists()]
    if reports:
        _, error = pickle.loads(min(reports, key=lambda path: path.stat().st_mtime_ns).read_bytes())
        return error
    rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
    said = _log(folder, rank).read_text(errors="replace").splitlines()[-20:]
    return workers.WorkerDied("\n".join([f"process {rank} of {len(codes)} ended with exit code {code}", *said]))


@contextmanager
def member() -> Iterator[None]:
    """Around what a process does that `launch` may have started: then it ends when the launching process is gone, and
    hands over to that what it raises."""
    folder = os.environ.get(_REPORTS)
    if folder is None:
        yield
        return
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    try:
        yield
    except BaseException as error:
        # Whole or not at all, and before the others notice that this process is gone.
        target = _report(Path(folder), int(os.environ["RANK"]))
        written = target.with_suffix(".written")
        written.write_bytes(workers.failure(error))
        written.replace(target)
        raise SystemExit(1) from None


def _end_with_launcher() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def meet(facts: Mapping[str, str], *, on_cpu: bool) -> None:
    """Has the processes of a launcher find each other, and compare what they are about to do. Nothing where there is
    only this one.

    Args:
        facts: what must be the same everywhere, and a digest of it.
        on_cpu: whether they compute there, or on a GPU each.

    Raises InputError, in all of them, where they differ or have too few GPUs.
    """
    if count() == 1:
        return
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    if _REPORTS in os.environ:
        if not on_cpu and count() > torch.cuda.device_count():
            raise InputError(f"launch.processes is {count()}, and there are {torch.cuda.device_count()} GPUs, of which "
                             "each process needs one; lower it, or set models.device to cpu")
        # Torch may have been imported with another number.
        torch.set_num_threads(workers.cores())
    PartialState(cpu=on_cpu, timeout=_PATIENCE)
    everyone = gather_object([dict(facts)])
    unlike = [(rank, what) for rank, theirs in enumerate(everyone) for what in {**everyone[0], **theirs}
              if theirs.get(what) != everyone[0].get(what)]
    if unlike:
        rank = unlike[0][0]
        told = ", ".join(what for other, what in unlike if other == rank)
        raise InputError(f"process {rank} of {len(everyone)} works with other contents than process 0: {told}; "
                         "give all processes the same files and the same code, and start again")


def wait_for_all() -> None:
    """Until all processes of a launcher have come here."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()

"""Ranks for programs that must not import this library; `automodel_mesh.testing` does, and its import changes torch."""

from __future__ import annotations

import os
import pickle
import re
import signal
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import multiprocessing

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60
"""For the ranks of one check, which take a few seconds where the machine is free."""


class RankError(Exception):
    """A rank failed, or did not end; the message says how, in a line."""


def in_a_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message, or the last of tracebacks, without paths."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[-1 if any(each.startswith("Traceback") for each in lines) else 0]
    return f"{type(error).__name__}: {re.sub(_PATH, '', line)}"[:300]


_PATH = r" ?\(/[^)]*\)|(?<=['\" ])/[\w./-]+/"


def run(function: Callable[..., Any], ranks: int, *args: Any, seconds: float = SECONDS) -> list[Any]:
    """Call a function on forked ranks with a process group of gloo, and return what each returned.

    Args:
        function: what each rank calls.
        ranks: how many.
        *args: for the function.
        seconds: the time limit, for all of it.

    Raises:
        RankError: a rank raised, died, or did not end within the time limit.
    """
    with tempfile.TemporaryDirectory(prefix="downstream-") as folder:
        arguments = (ranks, Path(folder), function, args)
        start: Any = multiprocessing.start_processes  # type: ignore[attr-defined] # torch does not list it
        started = start(_rank, arguments, nprocs=ranks, join=False, start_method="fork")
        _wait(started, time.monotonic() + seconds, seconds)
        failed = sorted(Path(folder).glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
        if failed:
            raise RankError(failed[0].read_text("utf-8"))
        return [pickle.loads((Path(folder) / f"{rank}.result").read_bytes()) for rank in range(ranks)]


def _wait(started: Any, deadline: float, seconds: float) -> None:
    """Wait until all ranks have ended; after a failure the others get two seconds."""
    processes = started.processes
    try:
        while any(process.is_alive() for process in processes):
            if any(process.exitcode for process in processes):
                deadline = min(deadline, time.monotonic() + 2)
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        codes = [process.exitcode for process in processes]
        if set(codes) <= {0, None} and None in codes:
            raise RankError(f"did not end within {seconds:.0f} s")
        if died := [code for code in codes if code is not None and code < 0]:
            raise RankError(f"a rank died of {signal.Signals(-died[0]).name}")
    finally:
        for process in processes:
            process.kill()
            process.join()


def _rank(rank: int, ranks: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    output = os.open(folder / f"{rank}.output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)},
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29500",  # not used, as there is a process group already
    )
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    try:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(minutes=5))
        (folder / f"{rank}.result").write_bytes(pickle.dumps(function(*args)))
        dist.barrier()  # no rank leaves while another still works
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent reports it
        (folder / f"{rank}.error").write_text(in_a_line(error), "utf-8")
        os._exit(1)
    os._exit(0)

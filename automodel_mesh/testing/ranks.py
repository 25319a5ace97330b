"""`run_ranks` runs a function on forked ranks, with a time limit and a report of what failed ranks did."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import re
import secrets
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from automodel_mesh.compat.devices import initialised_device_types
from automodel_mesh.testing.process import (
    LENGTH_BYTES,
    STACK_SIGNAL,
    Job,
    Message,
    RankContext,
    own_stacks,
    run_rank,
    shared_outcome,
)
from automodel_mesh.testing.report import Kind, RankFailure, RanksFailed, is_consequence

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

GRACE_SECONDS = 2.0
"""How long the other ranks may run after the first failure: time to notice a closed connection."""

_STACK_SECONDS = 1.0  # how long a stuck rank gets to write its stacks before it is killed
_OUTPUT_LIMIT = 20_000  # characters of a rank's output shown in a report: the end of it
_GLOO_NOISE = re.compile(r"^\[Gloo\] Rank \d+ is connected to .*\n?", re.MULTILINE)


@dataclass(frozen=True)
class RankResult:
    """What one rank returned, and what it wrote to stdout and stderr."""

    value: Any
    output: str


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    backend: str | None = "gloo",
    timeout: float = 60.0,
    device_type: str = "cpu",
    capture: bool = True,
    **kwargs: Any,
) -> list[Any]:
    """Call ``function(*args, **kwargs)`` on forked ranks inside one process group; return what each returned.

    Ranks are forked from this process: they start in milliseconds with everything that it has imported and made, and
    arguments need no pickling. The process group uses a `FileStore` and the loopback interface. ``RANK``,
    ``WORLD_SIZE``, ``LOCAL_RANK``, ``LOCAL_WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT`` are set as torchrun sets
    them, and torchrun's other variables are removed. Torch uses one thread on each rank. Random number generators start
    on all ranks in the state that they have in this process. No rank exits before all have finished, so that none sees
    a connection closed by a faster one.

    Args:
        function: what each rank calls. Bind a keyword argument of its own that has the name of one below with
            `functools.partial`.
        world_size: the number of ranks, at least 1.
        *args: positional arguments for ``function``.
        backend: of the default process group (``"gloo"``, ``"nccl"``, ...); ``None`` makes no process group.
        timeout: seconds for the whole run; ranks still running then write their stacks, for the report, and are
            killed.
        device_type: ``"cpu"``, or that of an accelerator, such as ``"cuda"``, of which rank ``r`` uses device
            ``r % number_of_devices``, which it chooses after the fork.
        capture: show each rank's stdout and stderr in the report of a failure only; ``False`` lets the ranks
            write where this process writes.
        **kwargs: keyword arguments for ``function``.

    Returns:
        The ranks' return values in rank order. They are pickled; a tensor has to be on the CPU.

    Raises:
        RanksFailed: a rank raised, died, returned what cannot be pickled, or ran past the time limit. A skip
            (`pytest.skip`, `unittest.SkipTest`), `pytest.xfail`, `pytest.exit` or a rejected hypothesis
            example that *every* rank raised is raised here instead.
        RuntimeError: ranks cannot be forked from this process: it has used an accelerator, belongs to a process
            group itself, or runs where there is no ``fork`` (Windows).
        ValueError: ``world_size``, ``timeout`` or ``device_type`` is out of range.
    """
    __tracebackhide__ = True  # read by pytest: the report is in the message, these frames add nothing to it
    job = Job(function, world_size, args, kwargs, backend, timeout, device_type, capture)
    return [result.value for result in run_job(job)]


def run_job(job: Job) -> list[RankResult]:
    """Run ranks as `run_ranks` does, and return what each returned and wrote."""
    __tracebackhide__ = True
    _refuse_unsafe_fork()
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        run = _Run(job, Path(folder))
        try:
            run.start()
            run.wait()
            return run.results()
        finally:
            run.close()


def _refuse_unsafe_fork() -> None:
    if not hasattr(os, "fork"):
        raise RuntimeError(f"ranks are forked, and {sys.platform} has no fork; run this on Linux or macOS")
    if used := initialised_device_types():
        cuda = ", and PYTORCH_NVML_BASED_CUDA_CHECK=1 keeps torch.cuda.is_available() from starting CUDA"
        raise RuntimeError(
            f"the device {used[0]!r} is initialised in this process, and does not survive a fork: every use of it on a "
            f"rank would fail. Use it on the ranks only (device_type={used[0]!r}){cuda if 'cuda' in used else ''}"
        )
    if dist.is_initialized():
        raise RuntimeError(
            f"this process is rank {dist.get_rank()} of a process group of {dist.get_world_size()}; forked "
            "ranks would inherit it without its connections. Call torch.distributed.destroy_process_group() "
            "first, and start no ranks from within a rank that has a process group"
        )


@dataclass
class _Process:
    """The parent's record of one rank."""

    rank: int
    reader: int
    pid: int = 0
    status: int | None = None  # as waitpid gives it, once the process is gone
    ended: float = 0.0
    data: bytearray = field(default_factory=bytearray)
    message: Message | None = None
    killed_as: Kind | None = None  # why the parent killed it: "hung" or "stopped"

    @property
    def done(self) -> bool:
        return self.message is not None or self.status is not None

    @property
    def returned(self) -> bool:
        return self.message is not None and self.message.value is not None

    def read(self) -> bool:
        """Read what is in the pipe; return False once its other end is closed."""
        while True:
            try:
                chunk = os.read(self.reader, 1 << 20)
            except BlockingIOError:
                return True
            self.data += chunk
            end = LENGTH_BYTES + int.from_bytes(self.data[:LENGTH_BYTES], "little")
            if self.message is None and len(self.data) >= end > LENGTH_BYTES:
                self.message = pickle.loads(self.data[LENGTH_BYTES:end])  # noqa: S301 - from our own fork
            if not chunk:
                return False

    def poll(self) -> bool:
        """Return whether the process has ended; keep its exit status."""
        if self.status is None and self.pid:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status, self.ended = status, time.monotonic()
        return self.status is not None or not self.pid

    def kill(self) -> None:
        if not self.poll():
            os.kill(self.pid, signal.SIGKILL)
            _, self.status = os.waitpid(self.pid, 0)


class _Run:
    """The ranks of one run, from the first fork until the last process has ended."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self.processes: list[_Process] = []
        self.selector = selectors.DefaultSelector()
        # The ranks that have finished read from this pipe, and exit when its other end is closed.
        self.exit_gate, self.exit_gate_writer = os.pipe()
        self.connected = os.pipe()
        self.start_time = time.monotonic()

    def start(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # each rank would write what is still buffered once more
        port = free_port()
        for rank in range(self.job.world_size):
            self._start_rank(rank, port)
        os.close(self.connected[1])
        self.connected = (self.connected[0], -1)

    def _start_rank(self, rank: int, port: int) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        process = _Process(rank, reader)
        self.processes.append(process)
        ours = (self.exit_gate_writer, *(process.reader for process in self.processes))
        context = RankContext(
            rank,
            self.folder,
            self.start_time,
            writer,
            self.connected,
            self.exit_gate,
            parent_descriptors=ours,
            port=port,
        )
        try:
            with _interrupts_held():
                process.pid = _fork()
                if process.pid == 0:
                    run_rank(self.job, context)
        finally:
            os.close(writer)
        self.selector.register(reader, selectors.EVENT_READ, process)

    def wait(self) -> None:
        """Wait until every rank has finished or failed; kill those that exceed the time limit."""
        limit = self.start_time + self.job.timeout
        why: Kind = "hung"
        while waiting := [process for process in self.processes if not process.done]:
            now = time.monotonic()
            if now >= limit:
                self._kill(waiting, why)
                return
            self._read_messages(min(limit - now, 0.1))
            # The end of the pipe is not enough: a process that the rank has started may hold it open.
            for process in waiting:
                if process.poll():
                    process.read()
            if why == "hung" and any(process.done and not process.returned for process in self.processes):
                grace_over = time.monotonic() + GRACE_SECONDS
                if grace_over < limit:
                    limit, why = grace_over, "stopped"

    def _read_messages(self, seconds: float) -> None:
        if not self.selector.get_map():  # all pipes are closed, and a rank is still exiting
            time.sleep(min(seconds, 0.002))
            return
        for key, _ in self.selector.select(seconds):
            process: _Process = key.data
            if not process.read():
                self.selector.unregister(process.reader)

    def _kill(self, processes: list[_Process], why: Kind) -> None:
        """Make ranks that have not ended write their stacks, then kill them."""
        stuck = [process for process in processes if not process.poll()]
        for process in stuck:
            process.killed_as = why
            os.kill(process.pid, getattr(signal, STACK_SIGNAL))
        limit = time.monotonic() + _STACK_SECONDS
        sizes: list[int] = []
        while time.monotonic() < limit:
            time.sleep(0.02)
            before, sizes = sizes, [len(self._text(process.rank, "stacks")) for process in stuck]
            if all(sizes) and sizes == before:
                break
        for process in stuck:
            process.kill()

    def results(self) -> list[RankResult]:
        """Let the ranks that have finished exit; return their values, or raise what went wrong."""
        __tracebackhide__ = True
        self._let_ranks_exit()
        failures = [failure for process in self.processes if (failure := self._failure(process)) is not None]
        if not failures:
            return [self._result(process) for process in self.processes]
        outcome = shared_outcome(process.message for process in self.processes)
        if outcome is not None:
            raise outcome
        # A rank that dies closes its connections, and other ranks raise because of that: the dead come first.
        order: tuple[Kind, ...] = ("died", "raised", "hung", "stopped")
        failures.sort(key=lambda one: (is_consequence(one), order.index(one.kind), one.seconds))
        raise RanksFailed(failures, self.job.world_size)

    def _let_ranks_exit(self) -> None:
        """Let the ranks that have finished exit, and wait for them; kill those that exceed the time limit."""
        os.close(self.exit_gate_writer)
        self.exit_gate_writer = -1
        limit = time.monotonic() + self.job.timeout
        pause = 0.0005
        while exiting := [process for process in self.processes if not process.poll()]:
            if time.monotonic() >= limit:
                self._kill(exiting, "hung")
            time.sleep(pause)
            pause = min(2 * pause, 0.01)

    def _result(self, process: _Process) -> RankResult:
        if process.message is None or process.message.value is None:
            raise RuntimeError(f"rank {process.rank} sent no value")
        value = pickle.loads(process.message.value)  # noqa: S301 - from our own fork
        return RankResult(value, self._output(process.rank))

    def _failure(self, process: _Process) -> RankFailure | None:
        """Return what the rank did instead of returning; None if it returned."""
        message, output = process.message, self._output(process.rank)
        if process.killed_as is None and message is not None and message.value is None:
            remark = "" if message.outcome is None else " (passed on only when every rank raises it)"
            summary = message.summary + remark
            return RankFailure(process.rank, "raised", summary, message.details, output, message.seconds)
        stacks = own_stacks(self._text(process.rank, "stacks"))
        where = " (it had returned, and was shutting down)" if process.returned else ""
        if process.killed_as is not None:
            hung = process.killed_as == "hung"
            limit = f"the time limit of {self.job.timeout} s" if hung else f"{GRACE_SECONDS:g} s of the first failure"
            summary = f"did not end within {limit}{where}"
            return RankFailure(process.rank, process.killed_as, summary, stacks or "(no stacks)", output, math.inf)
        if process.returned and process.status == 0:
            return None
        summary = _describe_status(process.status or 0) + where
        return RankFailure(process.rank, "died", summary, stacks, output, process.ended - self.start_time)

    def _text(self, rank: int, kind: str) -> str:
        path = self.folder / f"{rank}.{kind}"
        return path.read_text(errors="replace") if path.exists() else ""

    def _output(self, rank: int) -> str:
        text = _GLOO_NOISE.sub("", self._text(rank, "output"))
        surplus = len(text) - _OUTPUT_LIMIT
        return text if surplus <= 0 else f"({surplus} characters left out)\n{text[surplus:]}"

    def close(self) -> None:
        """Kill every process that is left, and close every descriptor."""
        for process in self.processes:
            process.kill()
            os.close(process.reader)
        self.selector.close()
        for descriptor in (self.exit_gate, self.exit_gate_writer, *self.connected):
            if descriptor >= 0:
                os.close(descriptor)


@contextlib.contextmanager
def _interrupts_held() -> Generator[None, None, None]:
    """Hold a Ctrl-C back until the block ends: Python calls functions around a fork, and drops what they raise."""
    ours = threading.current_thread() is threading.main_thread()  # the only one that gets it, and may set a handler
    if not ours or signal.getsignal(signal.SIGINT) in {signal.SIG_IGN, None}:
        yield
        return
    held = threading.Event()
    handler = signal.signal(signal.SIGINT, lambda *_: held.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held.is_set():
            signal.raise_signal(signal.SIGINT)


def _fork() -> int:
    """Fork, without the warning of Python 3.12 and newer that this process has several threads.

    Ranks use no thread of their parent. The usual ones are those of pytest-xdist, and torch's intra-op pool, which
    starts with the first large operation and which one thread per rank never enters (`_prepare_torch`).
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"This process .* is multi-threaded", DeprecationWarning)
        return os.fork()


def free_port() -> int:
    """Return a free port below those that Linux and macOS assign themselves.

    A port of theirs could be assigned to another process before a rank listens on it.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)  # not `random`, whose state ranks inherit from the caller
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _describe_status(status: int) -> str:
    if not os.WIFSIGNALED(status):
        return f"left with exit status {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    names = {int(member): member.name for member in signal.Signals}
    return f"died by {names.get(number, f'signal {number}')}"

"""What a forked rank does: set up the process and torch, call the function, send the result to the parent, exit."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import io
import os
import pickle
import signal
import socket
import sys
import time
import traceback
import unittest
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist

from automodel_mesh.compat.devices import device_module, is_device_type, select_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

STACK_SIGNAL = "SIGUSR1"  # SIGUSR2 is taken: torch's own native stack dumps use it. Windows has neither.
LENGTH_BYTES = 8  # size of the length that precedes a rank's message
_OF_THE_LAUNCHER = frozenset({"GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE"})
_HARNESS_MODULES = frozenset({__name__, "automodel_mesh.testing.plugin", "contextlib"})
_open_files: list[io.TextIOWrapper] = []


@dataclass(frozen=True)
class Job:
    """What the ranks of one run do, and under which limits; the fields are the arguments of `run_ranks`."""

    function: Callable[..., Any]
    world_size: int
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    backend: str | None = "gloo"
    timeout: float = 60.0
    device_type: str = "cpu"
    capture: bool = True

    def __post_init__(self) -> None:
        if type(self.world_size) is not int or self.world_size < 1:  # True is no number of ranks
            raise ValueError(f"world_size is {self.world_size!r}; give the number of ranks, at least 1")
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout!r}; give the time limit in seconds, more than 0")
        if not is_device_type(self.device_type):
            raise ValueError(
                f"device_type is {self.device_type!r}; ranks run on 'cpu', or an accelerator of torch's, such as 'cuda'"
            )


@dataclass(frozen=True)
class Message:
    """What a rank sends to its parent: a return value (pickled) or an exception (as text)."""

    seconds: float
    value: bytes | None = None
    summary: str = ""
    details: str = ""
    outcome: tuple[int, str] | None = None  # an index into `_outcome_types()`, and the reason


@dataclass(frozen=True)
class RankContext:
    """What the parent hands to one rank.

    Attributes:
        rank: the rank's number.
        folder: the folder of the run, for files.
        start_time: `time.monotonic` at the start of the run.
        writer: descriptor of the pipe for the rank's message.
        connected: both ends of a pipe that all ranks share, for `_wait_until_all_are_connected`.
        exit_gate: descriptor that reads end-of-file once all ranks have finished.
        parent_descriptors: descriptors that only the parent uses; the rank closes them.
        port: a port on the loopback interface that was free a moment ago.
    """

    rank: int
    folder: Path
    start_time: float
    writer: int
    connected: tuple[int, int]
    exit_gate: int
    parent_descriptors: tuple[int, ...]
    port: int

    def file(self, kind: str) -> Path:
        """Return the path of this rank's file for ``"output"`` or ``"stacks"``."""
        return self.folder / f"{self.rank}.{kind}"


def run_rank(job: Job, context: RankContext) -> NoReturn:
    """Run one rank in the forked process, and exit without running any more of the parent's code.

    Args:
        job: what the rank does.
        context: what the parent hands to this rank.
    """
    status = 1
    try:
        _prepare_process(job, context)
        _prepare_torch(job, context)
        message = _run_function(job, context)
        body = pickle.dumps(message)
        with os.fdopen(context.writer, "wb") as pipe:
            pipe.write(len(body).to_bytes(LENGTH_BYTES, "little") + body)
        # After a failure the rank exits at once: the other ranks see a closed connection instead of waiting.
        if message.value is not None or message.outcome is not None:
            _wait_until_all_have_finished(job, context)
        status = 0
    except BaseException:  # noqa: BLE001 - no exception may reach the parent's code
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _prepare_process(job: Job, context: RankContext) -> None:
    if sys.platform == "linux":
        # Linux then kills the rank when its parent ends (PR_SET_PDEATHSIG is 1), even if the parent is killed.
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        # A terminal sends Ctrl-C to the ranks too, which end without a traceback: the parent says what happened.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for descriptor in context.parent_descriptors:
        os.close(descriptor)
    if job.capture:
        output = os.open(context.file("output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(output, "wb", 0), "utf-8", "replace", write_through=True)
    stacks = context.file("stacks").open("w")
    _open_files.append(stacks)  # the handlers below write to it until the process ends
    faulthandler.enable(stacks)
    faulthandler.register(getattr(signal, STACK_SIGNAL), stacks)
    # The garbage collector skips what the parent has made: collections are quicker, and copy no pages of memory.
    # `leak_check` then finds only what this rank makes.
    gc.freeze()


def _prepare_torch(job: Job, context: RankContext) -> None:
    rank, size = str(context.rank), str(job.world_size)
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC_") or name in _OF_THE_LAUNCHER]:
        del os.environ[name]  # torchrun's, of a world that these ranks are not in: its store is not ours
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(context.port))
    # Ranks share this machine's cores. Moreover torch's intra-op pool, once the parent has used it, does not
    # survive a fork; with one thread it is never entered.
    torch.set_num_threads(1)
    # Gloo listens on the address that the host's name resolves to: slow or unreachable in many containers,
    # and all ranks are on this machine.
    interfaces = {name for _, name in socket.if_nameindex()}
    for loopback in ("lo", "lo0"):
        if loopback in interfaces:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _run_function(job: Job, context: RankContext) -> Message:
    try:
        _prepare_device_and_group(job, context)
        _wait_until_all_are_connected(context)
        value = _pickle_value(call_function(job))
        return Message(time.monotonic() - context.start_time, value)
    except BaseException as error:  # noqa: BLE001 - a skip, an exit or an interrupt ends a rank as well
        return _failure_message(error, time.monotonic() - context.start_time)


def _prepare_device_and_group(job: Job, context: RankContext) -> None:
    if job.device_type != "cpu":
        module = device_module(job.device_type)
        count = module.device_count() if module is not None else 0
        if not count:
            raise RuntimeError(f"device_type is {job.device_type!r}, and torch sees no such device here")
        select_device(job.device_type, context.rank % count)
    if job.backend is not None:
        store = (context.folder / "store").as_uri()
        dist.init_process_group(job.backend, store, rank=context.rank, world_size=job.world_size)


def _wait_until_all_are_connected(context: RankContext) -> None:
    """Wait until every rank has connected, or died.

    A rank that exits early, after a failure, would otherwise close its connections to ranks that have not
    finished connecting. Each rank closes its writing end; the end of the file comes when the last one has.
    """
    reader, writer = context.connected
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)


def call_function(job: Job) -> Any:
    """Call the job's function; `own_stacks` leaves out the stack frames from this function on."""
    return job.function(*job.args, **job.kwargs)


def own_stacks(text: str) -> str:
    """Remove the frames of this module, and of the parent below them, from the Python stacks of a rank."""
    lines: list[str] = []
    skipping = False
    for line in text.splitlines():
        if not line.startswith("  "):  # Python also writes `  ...`, and `  <invalid frame>` from 3.14 on
            skipping = False  # the next thread, or a line of another kind
        elif __file__ in line and line.endswith((f" in {call_function.__name__}", f" in {run_rank.__name__}")):
            skipping = True
        if not skipping:
            lines.append(line)
    return "\n".join(lines)


def _failure_message(error: BaseException, seconds: float) -> Message:
    own = error.__traceback__
    while own is not None and own.tb_frame.f_globals.get("__name__") in _HARNESS_MODULES:
        own = own.tb_next
    text = "".join(traceback.format_exception(type(error), error, own))
    line = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[0]
    indices = [index for index, kind in enumerate(_outcome_types()) if isinstance(error, kind)]
    outcome = (indices[0], str(error)) if indices else None  # not the exception: pytest's cannot be pickled
    return Message(seconds, summary=f"raised {line}", details=text, outcome=outcome)


def shared_outcome(messages: Iterable[Message | None]) -> BaseException | None:
    """Return the skip, or other exception of `_outcome_types`, that every rank has raised.

    Args:
        messages: the message of each rank, `None` for a rank that has sent none.

    Returns:
        The exception, with the first rank's reason; `None` if the ranks did not all raise the same type.
    """
    outcomes = [message.outcome if message else None for message in messages]
    indices = {outcome and outcome[0] for outcome in outcomes}
    if outcomes[0] is None or len(indices) != 1:
        return None
    index, reason = outcomes[0]
    return _outcome_types()[index](reason)


def _outcome_types() -> tuple[type[BaseException], ...]:
    """List the exceptions that control the test runner, such as a skip; the same list in every rank."""
    types: list[type[BaseException]] = [unittest.SkipTest]
    if (pytest := sys.modules.get("pytest")) is not None:
        types += [pytest.skip.Exception, pytest.xfail.Exception, pytest.exit.Exception]
    if (errors := sys.modules.get("hypothesis.errors")) is not None:
        types.append(errors.UnsatisfiedAssumption)
    return tuple(types)


class _ValuePickler(pickle.Pickler):
    """Refuses tensors that would start an accelerator in the parent when they are unpickled."""

    def reducer_override(self, value: Any) -> Any:
        """Raise for a tensor on a device; pickle all else as usual."""
        if isinstance(value, torch.Tensor) and value.device.type not in ("cpu", "meta"):
            raise TypeError(f"a tensor on {value.device} would start that device in the parent; return its .cpu()")
        return NotImplemented


def _pickle_value(value: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        _ValuePickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception as error:
        raise TypeError(
            f"the return value, of type {type(value).__name__}, cannot be sent to the parent: {error}. "
            "Return plain data: numbers, strings, containers, CPU tensors, instances of module-level classes"
        ) from error
    return buffer.getvalue()


def _wait_until_all_have_finished(job: Job, context: RankContext) -> None:
    os.read(context.exit_gate, 1)
    # A gloo group holds nothing that outlives its process, and destroying one costs 10 ms for each peer, so the
    # rank just exits. NCCL frees its shared memory when it is destroyed.
    if job.device_type != "cpu" and dist.is_initialized():
        dist.destroy_process_group()

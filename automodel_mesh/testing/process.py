"""What happens inside a forked rank, from the fork to its exit: set-up, the call, the message home."""

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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

STACK_SIGNAL = "SIGUSR1"  # SIGUSR2 is taken: torch's own native stack dumps use it. Windows has neither.
LENGTH_BYTES = 8  # size of the length that precedes a rank's message
_HARNESS_MODULES = frozenset({__name__, "automodel_mesh.testing.plugin", "contextlib"})
_kept_open: list[io.TextIOWrapper] = []


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
        if self.device_type not in ("cpu", "cuda"):
            raise ValueError(f"device_type is {self.device_type!r}; ranks run on 'cpu' or 'cuda'")


@dataclass(frozen=True)
class Message:
    """What a rank tells its parent: a return value (pickled) or an exception (as text)."""

    seconds: float
    value: bytes | None = None
    summary: str = ""
    details: str = ""
    outcome: tuple[int, str] | None = None  # a place in `_outcomes`, and the reason


@dataclass(frozen=True)
class Place:
    """Where a rank finds what its parent made for it.

    Attributes:
        rank: its number.
        folder: for the rank's files.
        began: `time.monotonic` at the start of the run.
        writer: descriptor of the pipe for its message.
        connected: both ends of a pipe that all ranks hold, for `_wait_for_all`.
        gate: descriptor that reads end-of-file once all ranks have finished.
        foreign: the parent's descriptors, to be closed here.
        port: a port on the loopback interface that was free a moment ago.
    """

    rank: int
    folder: Path
    began: float
    writer: int
    connected: tuple[int, int]
    gate: int
    foreign: tuple[int, ...]
    port: int

    def file(self, kind: str) -> Path:
        """Path of this rank's file for ``"output"`` or ``"stacks"``."""
        return self.folder / f"{self.rank}.{kind}"


def be_rank(job: Job, place: Place) -> NoReturn:
    """Run in the forked process and never come back into the parent's code: no exit handler, no pytest."""
    status = 1
    try:
        _prepare_process(job, place)
        _prepare_torch(job, place)
        message = _message_of(job, place)
        body = pickle.dumps(message)
        with os.fdopen(place.writer, "wb") as pipe:
            pipe.write(len(body).to_bytes(LENGTH_BYTES, "little") + body)
        # After a failure the rank leaves at once: its neighbours see a closed connection instead of waiting.
        if message.value is not None or message.outcome is not None:
            _leave_together(job, place)
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it must not reach the parent's code
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _prepare_process(job: Job, place: Place) -> None:
    if sys.platform == "linux":
        # Die with the parent (PR_SET_PDEATHSIG is 1), even when that is killed and can clean up nothing.
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    for descriptor in place.foreign:
        os.close(descriptor)
    if job.capture:
        output = os.open(place.file("output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(output, "wb", 0), "utf-8", "replace", write_through=True)
    stacks = place.file("stacks").open("w")
    _kept_open.append(stacks)  # the handlers below write to it until the process ends
    faulthandler.enable(stacks)
    faulthandler.register(getattr(signal, STACK_SIGNAL), stacks)
    # What the parent made is not collected here: quicker, and no page of memory is copied just to be looked
    # at. It also lets `leak_check` see what this rank makes, and nothing else.
    gc.freeze()


def _prepare_torch(job: Job, place: Place) -> None:
    rank, size = str(place.rank), str(job.world_size)
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(place.port))
    # Ranks share this machine's cores. Moreover torch's intra-op pool, once the parent has used it, does not
    # survive a fork; with one thread it is never entered.
    torch.set_num_threads(1)
    # Gloo listens on the address that the host's name resolves to: slow or unreachable in many containers,
    # and all ranks are on this machine.
    interfaces = {name for _, name in socket.if_nameindex()}
    for loopback in ("lo", "lo0"):
        if loopback in interfaces:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _message_of(job: Job, place: Place) -> Message:
    try:
        value = _dump(_call(job, place))
        return Message(time.monotonic() - place.began, value=value)
    except BaseException as error:  # noqa: BLE001 - a skip, an exit or an interrupt ends a rank as well
        seconds = time.monotonic() - place.began
        own = error.__traceback__
        while own is not None and own.tb_frame.f_globals.get("__name__") in _HARNESS_MODULES:
            own = own.tb_next
        return _failure_message(error, own, seconds)


def _call(job: Job, place: Place) -> Any:
    if job.device_type == "cuda":
        gpus = torch.cuda.device_count()
        if not gpus:
            raise RuntimeError("device_type is 'cuda', and torch sees no GPU here")
        torch.cuda.set_device(place.rank % gpus)
    if job.backend is not None:
        store = (place.folder / "store").as_uri()
        dist.init_process_group(job.backend, store, rank=place.rank, world_size=job.world_size)
    _wait_for_all(place)
    return call_function(job)


def _wait_for_all(place: Place) -> None:
    """Wait until every rank has connected, or died.

    A rank that leaves early, after a failure, would otherwise close its connections on neighbours that have
    not finished connecting. Each rank closes its writing end; the end of the file comes when the last one has.
    """
    reader, writer = place.connected
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)


def call_function(job: Job) -> Any:
    """Call the job's function; in the stacks of a stuck rank this name marks where the harness ends."""
    return job.function(*job.args, **job.kwargs)


def own_stacks(text: str) -> str:
    """Cut from a dump of stacks the frames of the harness and of the parent below a rank's own."""
    lines: list[str] = []
    skipping = False
    for line in text.splitlines():
        if not line.startswith("  File "):
            skipping = False  # the next thread, or a line of another kind
        elif __file__ in line and line.endswith((f" in {call_function.__name__}", f" in {be_rank.__name__}")):
            skipping = True
        if not skipping:
            lines.append(line)
    return "\n".join(lines)


def _failure_message(error: BaseException, own: TracebackType | None, seconds: float) -> Message:
    text = "".join(traceback.format_exception(type(error), error, own))
    line = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[0]
    places = [place for place, kind in enumerate(_outcomes()) if isinstance(error, kind)]
    outcome = (places[0], str(error)) if places else None  # not the exception: pytest's cannot be pickled
    return Message(seconds, summary=f"raised {line}", details=text, outcome=outcome)


def shared_outcome(messages: Iterable[Message | None]) -> BaseException | None:
    """Return the skip (or the like) that every rank has raised; None where they did not all do the same."""
    outcomes = [message.outcome if message else None for message in messages]
    places = {outcome and outcome[0] for outcome in outcomes}
    if outcomes[0] is None or len(places) != 1:
        return None
    place, reason = outcomes[0]
    return _outcomes()[place](reason)


def _outcomes() -> tuple[type[BaseException], ...]:
    """List the exceptions that tell the test runner something and are passed on; the same in every rank."""
    found: list[type[BaseException]] = [unittest.SkipTest]
    if (pytest := sys.modules.get("pytest")) is not None:
        found += [pytest.skip.Exception, pytest.xfail.Exception, pytest.exit.Exception]
    if (errors := sys.modules.get("hypothesis.errors")) is not None:
        found.append(errors.UnsatisfiedAssumption)
    return tuple(found)


class _ValuePickler(pickle.Pickler):
    """Refuses tensors that would start CUDA in the parent when they are unpickled."""

    def reducer_override(self, value: Any) -> Any:
        """Called for each object: an error, or pickle's own way."""
        if isinstance(value, torch.Tensor) and value.device.type not in ("cpu", "meta"):
            raise TypeError(f"a tensor on {value.device} would start CUDA in the parent; return its .cpu()")
        return NotImplemented


def _dump(value: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        _ValuePickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception as error:
        raise TypeError(
            f"the return value, of type {type(value).__name__}, cannot be sent to the parent: {error}. "
            "Return plain data: numbers, strings, containers, CPU tensors, instances of module-level classes"
        ) from error
    return buffer.getvalue()


def _leave_together(job: Job, place: Place) -> None:
    """Wait until all ranks have finished, then take the process group down."""
    os.read(place.gate, 1)
    # A gloo group holds nothing that outlives its process, and destroying one costs 10 ms for each peer:
    # leaving is enough. NCCL gives its shared memory back when it is destroyed.
    if job.device_type != "cpu" and dist.is_initialized():
        dist.destroy_process_group()

"""`initialize_distributed` and what says who a process is, before and after."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import init_utils
from automodel_mesh.init_utils import (
    DistInfo,
    get_local_rank_preinit,
    get_local_world_size_preinit,
    get_rank_safe,
    get_world_size_safe,
    initialize_distributed,
)
from automodel_mesh.testing import DeviceBackend, unavailable_reason

ROOT = Path(__file__).parents[1]
SECONDS = 120.0  # far more than any run here needs: the limit is for a hang
LAUNCHED = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
READERS = [
    (get_rank_safe, "RANK", 0),
    (get_world_size_safe, "WORLD_SIZE", 1),
    (get_local_rank_preinit, "LOCAL_RANK", 0),
    (get_local_world_size_preinit, "LOCAL_WORLD_SIZE", 1),
]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no variable of a launcher reach a test from outside."""
    for name in init_utils.LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def command(*words: str) -> subprocess.Popen[str]:
    """Start a Python that stops at every warning, in a session of its own; its output can be read."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    # What torch's C++ code logs, and torchrun's advice on threads, depend on the machine.
    environment |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    if "lo" in {name for _, name in socket.if_nameindex()}:
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    line = [sys.executable, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def without_gloo(output: str) -> str:
    """Remove what gloo of torch 2.7 to 2.9 puts out for each group, in pieces that those of other ranks get between.

    White space and digits go first: which piece they belong to cannot be told where pieces meet.
    """
    if "[Gloo] Rank " not in output:
        return output.strip()
    pieces = (r"\[Gloo\]Rank", "isconnectedto", r"peerranks\.", "Expectednumberofconnectedpeerranksis:")
    return re.sub("|".join(pieces), "", re.sub(r"[\s\d]+", "", output))


def finish(process: subprocess.Popen[str]) -> tuple[list[Any], str, str]:
    """Wait for a program; return what it said (see `launched.say`), what else it put out, and its errors."""
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        pytest.fail(f"still running after {SECONDS} s\n{output}\n{errors}")
    said = [json.loads(line[2:]) for line in output.splitlines() if line.startswith("> ")]
    others = "\n".join(line for line in output.splitlines() if not line.startswith("> "))
    return said, without_gloo(others), errors


def torchrun(ranks: int, scenario: str) -> subprocess.Popen[str]:
    """Start a scenario of tests/launched.py on some ranks."""
    return command(
        *("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
        *("--module", "tests.launched", scenario),
    )


@pytest.mark.release_independent
def test_what_gloo_puts_out_is_told_from_the_rest() -> None:
    """Its lines are removed though two ranks' pieces are mixed, and nothing else is."""
    line = "[Gloo] Rank {} is connected to 1 peer ranks. Expected number of connected peer ranks is : 1\n"
    mixed = "[Gloo] Rank [Gloo] Rank 01\n is connected to  is connected to 11 peer ranks.  peer ranks. "
    assert without_gloo(line.format(0) + line.format(1) + mixed) == ""
    assert without_gloo(line.format(0) + " said by\n the program") == "saidbytheprogram"
    assert without_gloo(" said by\n the program ") == "said by\n the program"


# --- under a launcher


def test_a_world_under_torchrun_starts_works_and_ends_silently() -> None:
    """Each rank is told what torchrun says, a second call tells the same, and nothing is printed but by the program."""
    process = torchrun(4, "work")
    told, others, errors = finish(process)
    assert (process.returncode, others, errors) == (0, "", "")
    assert sorted(told) == [[rank, 4, rank, 4, "cpu", rank == 0, 6, True] for rank in range(4)]


def test_sigterm_ends_ranks_that_wait_for_each_other() -> None:
    """A SIGTERM to torchrun ends it with failure and leaves no rank, though both wait inside gloo for ever."""
    process = torchrun(2, "stuck")
    assert process.stdout is not None
    pids: list[int] = []
    while len(pids) < 2:
        line = process.stdout.readline()
        assert line, finish(process)
        pids += [int(line[2:])] if line.startswith("> ") else []
    process.send_signal(signal.SIGTERM)
    *_, errors = finish(process)
    assert process.returncode != 0
    assert "SIGKILL" not in errors
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_ranks_end_by_themselves() -> None:
    """No end waits for another rank, dead or alive; worlds of one do not meet; SIGTERM does what it did before.

    - one_leaves: a rank ends with collectives under way in two groups, one of them still held, while its peer waits
      for it to be gone.
    - one_dies: a rank dies; its neighbour fails and ends, a collective under way; so does the neighbour's neighbour.
    - alone: of two processes without a launcher SIGTERM ends one by its default action, and calls the handler that the
      other had before.
    """
    said, others, errors = finish(command("-m", "tests.launched"))
    ended = {"one_leaves": [0, 0], "one_dies": [1, 1, 7], "alone": [-signal.SIGTERM, 5]}
    assert (said, others) == ([ended], ""), errors
    assert errors.count("did not shut down within 0.5 s") == 1, errors


# --- without a launcher


def test_a_process_alone() -> None:
    """It is rank 0 of 1; asking again gives the same, also in a new world after the first was destroyed."""
    expected = DistInfo("gloo", 0, 1, 0, 1, torch.device("cpu"), is_main=True)
    for timeout in (0.5, 3):
        assert initialize_distributed("gloo", timeout_minutes=timeout) == expected
        assert initialize_distributed("gloo") == expected
        total = torch.ones(2)
        dist.all_reduce(total)
        assert total.tolist() == [1.0, 1.0]
        dist.destroy_process_group()
    with pytest.raises(dataclasses.FrozenInstanceError):
        expected.rank = 1  # type: ignore[misc]


# --- in a world that is there already


@pytest.mark.ranks(2)
def test_a_world_that_is_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is described, not changed; a backend it lacks is refused; what the process group says goes before RANK."""
    world, rank = dist.group.WORLD, dist.get_rank()
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    monkeypatch.setenv("RANK", "no number")
    monkeypatch.setenv("WORLD_SIZE", "7")
    info = initialize_distributed("gloo", timeout_minutes=1)
    assert info == DistInfo("gloo", rank, 2, 3, 5, torch.device("cpu"), is_main=rank == 0)
    assert dist.group.WORLD is world
    assert (get_rank_safe(), get_world_size_safe()) == (rank, 2)
    for backend in ("nccl", "cpu:gloo,cuda:nccl"):
        with pytest.raises(ValueError, match=rf"backend='{backend}' .* 'cpu:gloo,cuda:gloo' already: .*destroy_proc"):
            initialize_distributed(backend)
    dist.barrier()


# --- who this process is


@pytest.mark.release_independent
@pytest.mark.parametrize(("reader", "name", "least"), READERS)
def test_a_reader_takes_whole_numbers_only(monkeypatch: pytest.MonkeyPatch, reader: Any, name: str, least: int) -> None:
    """Without a world it reads its variable, gives its default without that, and names a value that it cannot be."""
    assert reader() == least
    monkeypatch.setenv(name, "12")
    assert reader() == 12
    for text in ("", "two", "1.0", "-1", "+1", " 1", "1_0", "\N{ARABIC-INDIC DIGIT ONE}", str(least - 1)):
        monkeypatch.setenv(name, text)
        with pytest.raises(ValueError, match=rf"variable {name} is {re.escape(repr(text))}: .* from {least} on"):
            reader()


# --- what is refused


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("mpi",), ValueError, r"backend='mpi' is unknown: give one of 'gloo', 'nccl', 'cpu:gloo,cuda:nccl'"),
        (("GLOO",), ValueError, r"backend='GLOO' is unknown"),
        ((None,), TypeError, r"backend=None is of type NoneType: give one of 'gloo'"),
        (("gloo", 0), ValueError, r"timeout_minutes=0 is out of range: give minutes, more than 0"),
        (("gloo", -2.5), ValueError, r"timeout_minutes=-2.5 is out of range"),
        (("gloo", math.nan), ValueError, r"timeout_minutes=nan is out of range"),
        (("gloo", math.inf), ValueError, r"timeout_minutes=inf is out of range"),
        (("gloo", True), TypeError, r"timeout_minutes=True is of type bool: give a number of minutes"),
        (("gloo", "10"), TypeError, r"timeout_minutes='10' is of type str"),
    ],
)
def test_arguments_that_are_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    """A wrong argument is named with its value and what would do, and nothing is initialised."""
    with pytest.raises(error, match=message):
        initialize_distributed(*arguments)
    assert not dist.is_initialized()


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"WORLD_SIZE": None, "MASTER_PORT": None},
            r"lacks WORLD_SIZE, MASTER_PORT, and has RANK, LOCAL_RANK, LOCAL_W",
        ),
        (dict.fromkeys([*LAUNCHED][:5]), r"lacks RANK, WORLD_SIZE, .*MASTER_ADDR, and has MASTER_PORT: .* torchrun"),
        ({"MASTER_ADDR": ""}, r"lacks MASTER_ADDR, and has"),
        ({"RANK": "x"}, r"variable RANK is 'x'"),
        ({"WORLD_SIZE": "0"}, r"variable WORLD_SIZE is '0': it must be a whole number from 1 on"),
        ({"MASTER_PORT": "http"}, r"variable MASTER_PORT is 'http'"),
        ({"RANK": "1"}, r"RANK=1 with WORLD_SIZE=1; RANK can be 0 at most"),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}, r"LOCAL_RANK=2 with LOCAL_WORLD_SIZE=2"),
        ({"LOCAL_WORLD_SIZE": "2"}, r"LOCAL_WORLD_SIZE=2 with WORLD_SIZE=1; LOCAL_WORLD_SIZE can be 1 at most"),
    ],
)
def test_environments_that_are_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], message: str
) -> None:
    """An environment that is incomplete, malformed or at odds with itself is told so by the variable's name."""
    for name, value in {**LAUNCHED, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        initialize_distributed("gloo")
    assert not dist.is_initialized()


@pytest.mark.parametrize("backend", ["nccl", "cpu:gloo,cuda:nccl"])
def test_nccl_without_a_gpu(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """It is refused with the advice to use gloo."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides those there may be, as nothing has looked for them yet
    with pytest.raises(RuntimeError, match=rf"backend='{backend}' needs NCCL, and torch .* backend='gloo'"):
        initialize_distributed(backend)
    assert not dist.is_initialized()


@pytest.mark.cuda
def test_a_rank_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its device is the GPU of its local rank; a local rank beyond the GPUs there are is refused."""
    reason = unavailable_reason(DeviceBackend("cuda", "nccl"), 1)
    if reason is not None:
        pytest.skip(reason)
    gpus = torch.cuda.device_count()
    with monkeypatch.context() as patch:
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            patch.setenv(name, str(gpus + 1))
        for name, value in {**LAUNCHED, "LOCAL_RANK": str(gpus)}.items():
            patch.setenv(name, os.environ.get(name, value))
        with pytest.raises(RuntimeError, match=rf"LOCAL_RANK={gpus} has no GPU: this process sees {gpus} \(CUDA_VIS"):
            initialize_distributed("nccl")
    info = initialize_distributed("cpu:gloo,cuda:nccl")
    assert info.device == torch.device("cuda", 0)
    for device in ("cpu", info.device):
        total = torch.ones(2, device=device)
        dist.all_reduce(total)
        assert total.tolist() == [1.0, 1.0]
    assert initialize_distributed("nccl").device == info.device
    dist.destroy_process_group()

"""`initialize_distributed`, the shutdown at exit, and the functions for ranks and numbers of ranks."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import init_utils
from automodel_mesh.init_utils import (
    DistInfo,
    destroy_global_state,
    get_local_rank_preinit,
    get_local_world_size_preinit,
    get_rank_safe,
    get_world_size_safe,
    initialize_distributed,
)
from automodel_mesh.testing import DeviceBackend, unavailable_reason

ROOT = Path(__file__).parents[1]
SECONDS = 120.0  # far more than any run here needs: it only ends a run that hangs
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
    """Remove a launcher's variables from the environment of each test."""
    for name in init_utils.LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def command(*words: str) -> subprocess.Popen[str]:
    """Start Python with warnings as errors, in a session of its own, with its output in pipes."""
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
    """Remove the output of gloo of torch 2.7 to 2.9 for each group, which can be mixed with that of other ranks.

    White space and digits are removed first: in mixed output one cannot see which rank they come from.
    """
    if "[Gloo] Rank " not in output:
        return output.strip()
    pieces = (r"\[Gloo\]Rank", "isconnectedto", r"peerranks\.", "Expectednumberofconnectedpeerranksis:")
    return re.sub("|".join(pieces), "", re.sub(r"[\s\d]+", "", output))


def finish(process: subprocess.Popen[str]) -> tuple[list[Any], str, str]:
    """Wait for a program; return its lines of `launched.say`, its other output, and its stderr."""
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
def test_only_the_output_of_gloo_is_removed() -> None:
    """Lines of gloo are removed even if those of two ranks are mixed, and nothing else is removed."""
    line = "[Gloo] Rank {} is connected to 1 peer ranks. Expected number of connected peer ranks is : 1\n"
    mixed = "[Gloo] Rank [Gloo] Rank 01\n is connected to  is connected to 11 peer ranks.  peer ranks. "
    assert without_gloo(line.format(0) + line.format(1) + mixed) == ""
    assert without_gloo(line.format(0) + " said by\n the program") == "saidbytheprogram"
    assert without_gloo(" said by\n the program ") == "said by\n the program"


# --- under a launcher


def test_ranks_under_torchrun_initialise_and_exit_without_output() -> None:
    """Each rank has torchrun's numbers, a second call returns the same, and only the program prints."""
    process = torchrun(2, "work")
    said, others, errors = finish(process)
    assert (process.returncode, others, errors) == (0, "", "")
    assert sorted(said) == [[rank, 2, rank, 2, "cpu", rank == 0, 1, True] for rank in range(2)]


def test_sigterm_ends_ranks_that_wait_for_each_other() -> None:
    """A SIGTERM to torchrun ends it with failure and ends both ranks, although they wait in gloo forever."""
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


def test_ranks_exit_without_waiting_for_other_ranks() -> None:
    """No rank waits for another one at exit; separate worlds of one do not connect; SIGTERM has its usual action.

    - one_leaves: a rank exits during collectives in two groups, one of which it still refers to, while the other rank
      waits until it is gone.
    - one_dies: a rank dies; the rank that waits for it in a collective fails and exits, and so does the next one.
    - alone: of two processes without a launcher, SIGTERM ends one by its default action, and calls the handler that the
      other installed.
    """
    said, others, errors = finish(command("-m", "tests.launched"))
    ended = {"one_leaves": [0, 0], "one_dies": [1, 1, 7], "alone": [-signal.SIGTERM, 5]}
    assert (said, others) == ([ended], ""), errors
    assert errors.count("did not shut down within 0.5 s") == 1, errors


# --- without a launcher


def test_a_process_without_a_launcher_is_rank_0_of_1() -> None:
    """It is rank 0 of 1; a second call returns the same, also after the process group was destroyed and made again."""
    expected = DistInfo("gloo", 0, 1, torch.device("cpu"), True, 0, 1)
    for timeout in (0.5, 3, None, 52_560_000):
        assert initialize_distributed("gloo", timeout_minutes=timeout) == expected
        assert initialize_distributed("gloo") == expected
        total = torch.ones(2)
        dist.all_reduce(total)
        assert total.tolist() == [1.0, 1.0]
        dist.destroy_process_group()


# --- with an existing process group


@pytest.mark.ranks(2)
def test_destroying_the_global_state_ends_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """All process groups are gone, another call does nothing, and the signal handlers are as before."""
    freed: list[bool] = []
    deep_ep = ModuleType("fused_a2a")  # which needs GPUs
    deep_ep.free_buffer = lambda: freed.append(dist.is_initialized())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nemo_automodel.components.moe.megatron.fused_a2a", deep_ep)
    handler = signal.getsignal(signal.SIGINT)
    dist.barrier()
    destroy_global_state()
    assert not dist.is_initialized()
    destroy_global_state()
    assert freed == [True, False]
    assert signal.getsignal(signal.SIGINT) is handler
    assert initialize_distributed("gloo").world_size == 2
    delattr(deep_ep, "free_buffer")
    destroy_global_state()
    assert not dist.is_initialized()


@pytest.mark.release_independent
def test_a_buffer_that_cannot_be_freed_keeps_no_world(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails in it is logged, and the process groups are destroyed all the same."""
    deep_ep = ModuleType("fused_a2a")
    deep_ep.free_buffer = lambda: 1 / 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nemo_automodel.components.moe.megatron.fused_a2a", deep_ep)
    initialize_distributed("gloo")
    destroy_global_state()
    assert not dist.is_initialized()
    assert "the buffer of DeepEP was not freed: division by zero" in caplog.text


@pytest.mark.ranks(2)
def test_an_existing_process_group_is_described_and_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is described and not changed; a backend that it lacks is refused; its rank takes precedence over RANK."""
    world, rank = dist.group.WORLD, dist.get_rank()
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    monkeypatch.setenv("RANK", "no number")
    monkeypatch.setenv("WORLD_SIZE", "7")
    info = initialize_distributed("gloo", timeout_minutes=1)
    assert info == DistInfo("gloo", rank, 2, torch.device("cpu"), rank == 0, 3, 5)
    assert dist.group.WORLD is world
    assert (get_rank_safe(), get_world_size_safe()) == (rank, 2)
    for backend in ("nccl", "cpu:gloo,cuda:nccl"):
        with pytest.raises(ValueError, match=rf"backend='{backend}' .* 'cpu:gloo,cuda:gloo' already: .*destroy_proc"):
            initialize_distributed(backend)
    dist.barrier()


# --- ranks and numbers of ranks


@pytest.mark.release_independent
@pytest.mark.parametrize(("reader", "name", "least"), READERS)
def test_variables_must_be_whole_numbers(monkeypatch: pytest.MonkeyPatch, reader: Any, name: str, least: int) -> None:
    """Without a process group each function reads its variable or has a default; the error names an invalid value."""
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
        (
            ("glooo",),
            ValueError,
            r"backend 'glooo' is not known to torch \(did you mean 'gloo'\?\): give one of gloo, ",
        ),
        (("cpu:gloo;cuda:nccl",), ValueError, r"backend 'cpu:gloo;cuda:nccl' cannot be read"),
        (("",), ValueError, r"backend '' is not known to torch"),
        ((None,), TypeError, r"backend=None is of type NoneType: give the name of a backend, such as 'gloo'"),
        (("gloo", 0), ValueError, r"timeout_minutes=0 cannot be waited for: give a number of minutes above 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    """The error names the argument, its value and valid values, and torch.distributed is not initialised."""
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
def test_wrong_environments_are_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], message: str
) -> None:
    """An environment that is incomplete, malformed or inconsistent is an error that names the variable."""
    for name, value in {**LAUNCHED, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        initialize_distributed("gloo")
    assert not dist.is_initialized()


@pytest.mark.parametrize("backend", ["nccl", "cpu:gloo,cuda:nccl"])
def test_nccl_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """The error for NCCL without a GPU advises to use gloo."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides any GPUs: CUDA is not initialised yet
    with pytest.raises(RuntimeError, match=r"backend 'nccl'(: this torch was built without it| needs a GPU, .*'gloo')"):
        initialize_distributed(backend)
    assert not dist.is_initialized()


@pytest.mark.cuda
def test_a_rank_uses_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is the GPU of the local rank; a local rank without a GPU is refused."""
    reason = unavailable_reason(DeviceBackend("cuda", "nccl"), 1)
    if reason is not None:
        pytest.skip(reason)
    gpus = torch.cuda.device_count()
    with monkeypatch.context() as patch:
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            patch.setenv(name, str(gpus + 1))
        for name, value in {**LAUNCHED, "LOCAL_RANK": str(gpus)}.items():
            patch.setenv(name, os.environ.get(name, value))
        with pytest.raises(
            RuntimeError, match=rf"LOCAL_RANK={gpus} has no device: .* {gpus} of type 'cuda' \(CUDA_VIS"
        ):
            initialize_distributed("nccl")
    info = initialize_distributed("cpu:gloo,cuda:nccl")
    assert info.device == torch.device("cuda", 0)
    for device in ("cpu", info.device):
        total = torch.ones(2, device=device)
        dist.all_reduce(total)
        assert total.tolist() == [1.0, 1.0]
    assert initialize_distributed("nccl").device == info.device
    dist.destroy_process_group()

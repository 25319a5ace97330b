"""`automodel-mesh doctor` in a real launch: ranks that come, differ, die and stop, on one host and on two."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from automodel_mesh.testing.ranks import free_port

ROOT = Path(__file__).parents[1]
ELSEWHERE = ROOT.anchor
"""The working directory of ranks. In the checkout they would find its version, whatever else is on their path."""
LIMIT = 100.0
"""Seconds after which a launch counts as hung."""

HIT = """
import os, signal, sys, threading, time

def hit():
    while not (dist := sys.modules.get("torch.distributed")) or not getattr(dist, "is_initialized", bool)():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.{signal})

threading.Thread(target=hit, daemon=True).start()
"""
"""As sitecustomize.py of one rank: sends it a signal when its default process group is there."""

RANK = """
if [ "$RANK" = "$VICTIM" ]; then export PYTHONPATH="$ITS_PATH:$PYTHONPATH"; fi
exec "$0" -m automodel_mesh doctor "$@"
"""


def environment(victim: int = -1, its_path: Path = ROOT) -> dict[str, str]:
    """Return the environment of a launch, one of whose ranks has another folder first on its path."""
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VICTIM": str(victim), "ITS_PATH": str(its_path)}
    return {**os.environ, **ours}


def torchrun(*arguments: str, before: tuple[str, ...] = (), **launch: str) -> list[str]:
    """Return the command that starts doctor with torchrun, by default four ranks on this host."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in launch.items()] or ["--standalone"]
    agent = [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node=4", "--no-python"]
    return [*before, *agent, "bash", "-c", RANK, sys.executable, *arguments]


def run(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a launch to its end."""
    return subprocess.run(
        command, cwd=ELSEWHERE, env=variables, capture_output=True, text=True, check=False, timeout=LIMIT
    )


def start_ranks(number: int, variables: dict[str, str], *arguments: str) -> list[subprocess.Popen[str]]:
    """Start ranks with the variables of a launcher, but without one, so that rank 0 serves the store."""
    port = str(free_port())
    ranks: list[subprocess.Popen[str]] = []
    for rank in range(number):
        its = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
        ranks.append(
            subprocess.Popen(
                ["bash", "-c", RANK, sys.executable, *arguments],
                cwd=ELSEWHERE,
                env={**variables, **its, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return ranks


def folder_that_hits(folder: Path, name: str) -> Path:
    """Return a folder that makes a rank get a signal, once its default process group is there."""
    (folder / "sitecustomize.py").write_text(HIT.format(signal=name), encoding="utf-8")
    return folder


def test_a_sound_launch_passes() -> None:
    """Under torchrun doctor checks the launch by itself: each axis with its groups and sums, in one document."""
    done = run(torchrun("--tp", "2", "--json"), environment())
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["passed"]
    assert list(document["hosts"].values()) == [[0, 1, 2, 3]]
    groups = {check["name"]: check["groups"] for check in document["checks"] if check["groups"]}
    assert {name: [group["ranks"] for group in found] for name, found in groups.items()} == {
        "axis dp_shard": [[0, 2], [1, 3]],
        "axis tp": [[0, 1], [2, 3]],
        "default group": [[0, 1, 2, 3]],
    }
    assert all(group["sum"] == sum(group["ranks"]) for found in groups.values() for group in found)


@pytest.mark.release_independent
def test_another_version_on_a_rank_is_named(tmp_path: Path) -> None:
    """A rank that has another version of the library installed is named, with both versions, and no group is made."""
    folder = tmp_path / "automodel_mesh-9.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: automodel-mesh\nVersion: 9.9\n", encoding="utf-8")
    done = run(torchrun(), environment(2, tmp_path))
    assert done.returncode != 0
    assert f"versions: rank 2 on {socket.gethostname()} has automodel-mesh 9.9" in done.stdout
    assert "not run   0.00 s  start" in done.stdout


@pytest.mark.release_independent
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_is_named(victim: int, tmp_path: Path) -> None:
    """A rank that is killed is named with its host, by another rank if it is rank 0, and the others end."""
    done = run(torchrun(), environment(victim, folder_that_hits(tmp_path, "SIGKILL")))
    assert done.returncode != 0
    assert f"rank {victim} on {socket.gethostname()} (pid" in done.stdout
    assert "does not answer" in done.stdout
    assert ("(reported by rank" in done.stdout) == (victim == 0)


@pytest.mark.release_independent
def test_a_stopped_rank_is_named_at_the_time_limit(tmp_path: Path) -> None:
    """A rank that has stopped is named with its host at the time limit; all others end with 1, and one reports."""
    ranks = start_ranks(3, environment(1, folder_that_hits(tmp_path, "SIGSTOP")), "--timeout", "8")
    try:
        outputs = [ranks[rank].communicate(timeout=LIMIT)[0] for rank in (0, 2)]
    finally:
        ranks[1].send_signal(signal.SIGKILL)
        ranks[1].communicate()
    assert [ranks[0].returncode, ranks[2].returncode] == [1, 1]
    assert f"rank 1 on {socket.gethostname()} (pid {ranks[1].pid}) does not answer" in outputs[0]
    assert outputs[1] == ""


@pytest.mark.release_independent
def test_the_loss_of_the_rank_that_serves_the_store_is_told(tmp_path: Path) -> None:
    """Without torchrun rank 0 serves the store: if it is killed, the next rank says so, and the others end with 1."""
    ranks = start_ranks(3, environment(0, folder_that_hits(tmp_path, "SIGKILL")), "--timeout", "8")
    told = [rank.communicate(timeout=LIMIT) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [-signal.SIGKILL, 1, 1]
    assert ["which rank 0 serves, does not answer" in errors for _, errors in told] == [False, True, False]
    assert [output for output, _ in told] == [told[0][0], "", ""]


@pytest.mark.release_independent
def test_impossible_sizes_are_told_once() -> None:
    """Sizes that do not fit end all ranks with 2, and one of them says why."""
    ranks = start_ranks(2, environment(), "--tp", "3")
    told = [rank.communicate(timeout=LIMIT)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert "possible, with one change" in told[0]
    assert told[1] == ""


@pytest.fixture
def two_hosts() -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """Make two network namespaces, joined by a cable: the commands to run in each, and the address of the first."""
    names = [f"mesh{os.getpid()}{side}" for side in "ab"]
    lines = [
        f"netns add {names[1]}",
        f"link add {names[0]} type veth peer name {names[1]}",
        *(f"link set {name} netns {name}" for name in names),
        *(f"-n {name} addr add 10.77.0.{index}/24 dev {name}" for index, name in enumerate(names, 1)),
        *(f"-n {name} link set {device} up" for name in names for device in ("lo", name)),
    ]
    try_one = f"ip netns add {names[0]} && ip netns exec {names[0]} true"
    try:
        if subprocess.run(["sh", "-c", try_one], check=False, capture_output=True).returncode:
            # Not a skip: without rights to make them, both agents are on this host, and only the agents are two.
            yield ("env",), ("env",), "127.0.0.1"
            return
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True, capture_output=True)
        inside = [("ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c") for name in names]
        hosts = [(*command, f'hostname {name}; exec "$@"', "sh") for command, name in zip(inside, names, strict=True)]
        yield hosts[0], hosts[1], "10.77.0.1"
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.release_independent
def test_two_hosts_pass(two_hosts: tuple[tuple[str, ...], tuple[str, ...], str]) -> None:
    """On two hosts, each with an agent of torchrun, all ranks connect, and one report lists the hosts."""
    *hosts, address = two_hosts
    variables = environment()
    port = str(free_port())
    agents: list[subprocess.Popen[str]] = []
    for node, host in enumerate(hosts):
        its = dict(variables)
        if address != "127.0.0.1":
            its["GLOO_SOCKET_IFNAME"] = f"mesh{os.getpid()}{'ab'[node]}"
        line = torchrun(
            "--tp",
            "4",
            "--json",
            before=host,
            nnodes="2",
            node_rank=str(node),
            master_addr=address,
            master_port=port,
        )
        agents.append(
            subprocess.Popen(line, cwd=ELSEWHERE, env=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [agent.communicate(timeout=LIMIT) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    document = json.loads(outputs[0][0])
    assert document["passed"]
    assert outputs[1][0] == ""
    if address != "127.0.0.1":
        assert list(document["hosts"].values()) == [[0, 1, 2, 3], [4, 5, 6, 7]]

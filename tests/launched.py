"""Programs whose ranks start and exit as in a real job, for test_init_utils.

Under torchrun, `python -m tests.launched <scenario>` is one rank of a scenario of `LAUNCHED`. Without arguments,
`python -m tests.launched` imports torch once, forks the ranks of the other scenarios, and prints their exit statuses.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from automodel_mesh import init_utils
from automodel_mesh.init_utils import initialize_distributed
from automodel_mesh.testing.ranks import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60.0
"""After so long a rank counts as stuck, and is killed."""

kept: list[Any] = []
"""What the program still refers to when it ends."""


def say(what: object) -> None:
    """Write a line to stdout, with a mark and in one call: gloo of torch 2.7 to 2.9 writes to stdout in many calls."""
    os.write(1, f"\n> {json.dumps(what)}\n".encode())


def all_ranks() -> dist.ProcessGroup:
    """Create another group of all ranks, and wait until every rank has connected."""
    group = dist.new_group(list(range(dist.get_world_size())))
    dist.barrier()
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"new_group gave {group!r}")
    return group


# --- started by torchrun


def work() -> None:
    """Initialise from torchrun's environment, sum the ranks, and print what this rank got."""
    info = initialize_distributed("gloo", timeout_minutes=1)
    total = torch.tensor([info.rank])
    dist.all_reduce(total)
    same = initialize_distributed("gloo") == info
    facts = [info.rank, info.world_size, info.local_rank, info.local_world_size, str(info.device), info.is_main]
    say([*facts, int(total), same])
    dist.barrier()


def stuck() -> None:
    """Wait for a message from the other rank, which waits as well and sends none."""
    rank = initialize_distributed("gloo").rank
    all_ranks()
    say(os.getpid())
    dist.recv(torch.ones(2), src=1 - rank)


LAUNCHED = {"work": work, "stuck": stuck}


# --- forked here


def one_leaves(gone: int, held_by_first: int, rank: int) -> None:
    """Exit on one rank during collectives, while the other does nothing until that rank's process is gone."""
    initialize_distributed("gloo")
    group = all_ranks()
    if rank == 1:
        os.close(held_by_first)
        os.read(gone, 1)
        return
    setattr(init_utils, "EXIT_SECONDS", 0.5)  # noqa: B010 - it is Final for others; here it has to be waited out
    works = [dist.all_reduce(torch.ones(2), group=each, async_op=True) for each in (dist.group.WORLD, group)]
    kept.extend([group, works[1]])
    del works  # only torch refers to the other: its tensor is released by a thread of gloo
    time.sleep(0.1)  # for gloo's threads to begin


def one_dies(rank: int) -> None:
    """Kill the last of three ranks; the second waits for it in a collective, and the first for the second."""
    initialize_distributed("gloo")
    group = all_ranks()
    if rank == 2:
        os._exit(7)
    if rank == 1:
        kept.append(dist.all_reduce(torch.ones(2), group=group, async_op=True))
    dist.recv(torch.ones(2), src=rank + 1)


def alone(up: int, rank: int) -> None:
    """Run two separate worlds of one rank; the second has installed a handler for SIGTERM before."""
    for name in init_utils.LAUNCHER_VARIABLES:
        del os.environ[name]
    if rank == 1:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    info = initialize_distributed("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    if (info.rank, info.world_size, total.item()) != (0, 1, 1.0):
        sys.exit(f"not alone: {info}, {total}")
    os.write(up, b".")
    time.sleep(SECONDS)


def fork(size: int, body: Callable[[int], None]) -> list[int]:
    """Fork ranks with torchrun's variables; each exits as a program does, which a test forked by pytest could not."""
    port = free_port()
    pids: list[int] = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)
            values = (rank, size, rank, size, "127.0.0.1", port)
            os.environ.update(zip(init_utils.LAUNCHER_VARIABLES, map(str, values), strict=True))
            body(rank)
            sys.exit(0)
        pids.append(pid)
    return pids


def wait(pids: list[int]) -> list[int]:
    """Return the exit code of each process, as `os.waitstatus_to_exitcode` gives it; a stuck one is killed."""
    statuses: dict[int, int] = {}
    limit = time.monotonic() + SECONDS
    while len(statuses) < len(pids):
        late = time.monotonic() >= limit
        for pid in set(pids) - set(statuses):
            if late:
                os.kill(pid, signal.SIGKILL)
            found, status = os.waitpid(pid, 0 if late else os.WNOHANG)
            if found:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [statuses[pid] for pid in pids]


def main() -> None:
    """Run the forked scenarios at the same time; print a table of their ranks' exit statuses."""
    gc.freeze()  # ranks exit faster if garbage collection skips the objects of their parent
    gone, held_by_first = os.pipe()
    leaving = fork(2, functools.partial(one_leaves, gone, held_by_first))
    os.close(held_by_first)
    dying = fork(3, one_dies)
    up, says_up = os.pipe()
    lone = fork(2, functools.partial(alone, says_up))
    os.close(says_up)
    for _ in lone:
        os.read(up, 1)  # both are running now, or one has died
    for pid in lone:
        os.kill(pid, signal.SIGTERM)
    say({"one_leaves": wait(leaving), "one_dies": wait(dying), "alone": wait(lone)})
    os._exit(0)


if __name__ == "__main__":
    LAUNCHED[sys.argv[1]]() if len(sys.argv) > 1 else main()

"""`Board`: what the ranks of a launch tell each other while `doctor` checks it, in the launch's own store."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from typing import Final, Literal, NamedTuple

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # missing in torch's stubs

from automodel_mesh.init_utils import RankInfo

_POLL_SECONDS: Final = 0.1

How = Literal["finished", "raised", "waiting", "ended"]


class Member(NamedTuple):
    """What a rank says of itself when it comes."""

    host: str
    pid: int
    local_rank: int
    local_world_size: int
    versions: dict[str, str]


class Measured(NamedTuple):
    """What a rank has measured in one of its process groups."""

    number: int
    """How many ranks the sum has added up."""
    total: int
    """The sum of their numbers."""
    seconds: float
    """The time of such a small all-reduce: the median of several."""
    bandwidth: float
    """That of a large one, in bytes per second: what each rank sends, as nccl-tests counts it ("busbw")."""


class Ending(NamedTuple):
    """What a rank says when it ends."""

    how: How
    """`"finished"` all steps; an error was `"raised"`; `"waiting"` in a step; `"ended"` by a signal of the launcher."""
    step: int
    """The step that it was in, by index."""
    elapsed: float
    """Seconds since it began."""
    seconds: list[float]
    """How long each step took that it has finished."""
    groups: dict[str, Measured]
    """What it has measured, by the name of the step."""
    error: str = ""
    details: str = ""


class Board:
    """The part of the launch's store that doctor uses; it connects to the store, or serves it if nothing else does.

    No operation waits for another rank, so that a thread that calls one is not held up by a rank that has stopped.

    Args:
        place: this rank.
        seconds: how long to wait for the store.

    Raises:
        RuntimeError: the store cannot be reached (torch's own errors); each method raises it too.
    """

    def __init__(self, place: RankInfo, seconds: float) -> None:
        environment = os.environ
        store = TCPStore(
            environment["MASTER_ADDR"],
            int(environment["MASTER_PORT"]),
            is_master=place.rank == 0 and not served_by_launcher(),
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
            multi_tenant=True,  # torch's own store of this process, made later, is then the same one
        )
        # torchrun keeps one store for all attempts, and can keep it for several runs.
        run = "/".join(environment.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
        self._store = PrefixStore(f"automodel_mesh/doctor/{run}", store)
        self._place = place

    def come(self, member: Member) -> None:
        """Say that this rank has come; if another process has come with the same RANK, stop the launch."""
        text = json.dumps(member._asdict())
        if self._store.compare_set(f"member/{self._place.rank}", "", text).decode() != text:
            self._store.set(f"twice/{self._place.rank}", text)
            self.stop()
        elif self._store.add("came", 1) == self._place.world_size:
            self._store.set("all came", "1")

    def agree_on(self, versions: dict[str, str]) -> bool:
        """Tell whether these versions are those of the rank that came first."""
        text = json.dumps(versions)
        return self._store.compare_set("versions", "", text).decode() == text

    def all_came(self) -> bool:
        """Tell whether every rank has come."""
        return self._store.check(["all came"])

    def begin(self, step: int) -> None:
        """Say that this rank begins a step."""
        self._store.set(f"step/{self._place.rank}", str(step))

    def stop(self) -> None:
        """Ask all ranks to end."""
        self._store.set("stop", "1")

    def stopped(self) -> bool:
        """Tell whether a rank has asked all to end."""
        return self._store.check(["stop"])

    def end(self, ending: Ending) -> None:
        """Say how this rank has ended."""
        self._store.set(f"end/{self._place.rank}", json.dumps(ending._asdict()))
        self._store.add("ended", 1)

    def all_ended(self) -> bool:
        """Tell whether every rank has said how it ended."""
        return self._store.add("ended", 0) >= self._place.world_size

    def claim_report(self) -> bool:
        """Tell whether this rank is the first that asks to report."""
        return self._store.compare_set("reporter", "", str(self._place.rank)).decode() == str(self._place.rank)

    def decide(self, status: int) -> None:
        """Tell all ranks their exit status, and wait until they have read it: this rank may serve the store."""
        self._store.set("status", str(status))
        limit = time.monotonic() + 2.0
        others = self._store.add("ended", 0) - 1
        while self._store.add("left", 0) < others and time.monotonic() < limit:
            time.sleep(_POLL_SECONDS / 10)

    def status(self) -> int | None:
        """Return the exit status of all ranks; `None` as long as none has reported."""
        if not self._store.check(["status"]):
            return None
        status = int(self._store.get("status"))
        self._store.add("left", 1)
        return status

    def members(self, kind: Literal["member", "twice"] = "member") -> dict[int, Member]:
        """Return the ranks that have come; with `"twice"`, the second process for each RANK that two have."""
        return {rank: Member(**json.loads(text)) for rank, text in self._all(kind).items()}

    def steps(self) -> dict[int, int]:
        """Return the step that each rank has begun last."""
        return {rank: int(text) for rank, text in self._all("step").items()}

    def endings(self) -> dict[int, Ending]:
        """Return how each rank has ended that said so."""
        endings = {rank: Ending(**json.loads(text)) for rank, text in self._all("end").items()}
        return {
            rank: ending._replace(groups={step: Measured(*values) for step, values in ending.groups.items()})
            for rank, ending in endings.items()
        }

    def _all(self, kind: str) -> dict[int, bytes]:
        keys = ((rank, f"{kind}/{rank}") for rank in range(self._place.world_size))
        return {rank: self._store.get(key) for rank, key in keys if self._store.check([key])}


def served_by_launcher() -> bool:
    """Tell whether the launcher serves the store, as torchrun does; else rank 0 does."""
    return dist.is_torchelastic_launched() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"

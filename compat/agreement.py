"""Ranks agree on an operation before its first process group is made, and confirm that all of them have made theirs.

The ranks meet in the default store, not in a collective, with the same few store operations per rank at any world size.
In the first step each rank says what it asks for; the step ends at once if a rank asks for something else or was
refused, and at the timeout if one does not come. In the second step each rank says that its groups are made, so no rank
leaves while another still connects. Either all ranks succeed, or none does and each raises an error with the cause.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed import distributed_c10d

from automodel_mesh.checks import shown_ranks
from automodel_mesh.compat.worlds import current_world, delete_what_groups_left, end_groups
from automodel_mesh.errors import ProcessGroupDestroyedError, RanksDisagreeError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SHOWN: Final = 600
"""Characters of a request that are shown in an error."""

_LEADER_SECONDS: Final = 5.0
"""How long a rank whose time is over waits for the one that finds out which ranks are missing."""


@dataclass
class _Population:
    """The ranks that meet, in one world of process groups.

    Attributes:
        ranks: their global ranks.
        name: a name that is different for other ranks.
        number: how many operations of these ranks there were.
        generation: how many worlds have used the same store before; -1 if that is not known yet.
    """

    ranks: Sequence[int]
    name: str
    number: int = 0
    generation: int = -1

    def store(self) -> PrefixStore | None:
        """Return the part of the default store for these ranks; `None` if they need not or cannot meet."""
        if len(self.ranks) == 1 or "fake" in dist.get_backend():
            return None
        store = cast("PrefixStore | None", distributed_c10d._get_default_store())
        if store is None:  # MPI has none
            return None
        kept = PrefixStore(f"automodel_mesh/{self.name}", store)
        if self.generation < 0:
            self.generation = (kept.add("worlds", 1) - 1) // len(self.ranks)
        return PrefixStore(str(self.generation), kept)


_populations: WeakKeyDictionary[ProcessGroup, dict[str, _Population]] = WeakKeyDictionary()


def _population(ranks: Sequence[int]) -> _Population:
    """Return the population of some ranks in the current world, the same object each time."""
    world = current_world()
    if world is None:
        raise ProcessGroupDestroyedError("torch.distributed is not initialised: call init_process_group first.")
    whole = len(ranks) == dist.get_world_size()
    name = "world" if whole else sha256(repr(list(ranks)).encode()).hexdigest()[:16]
    return _populations.setdefault(world, {}).setdefault(name, _Population(ranks, name))


class _EndedWithoutUs(Exception):  # noqa: N818 - not an error: this rank goes on to the next meeting
    """The other ranks have met before and gave up waiting for this one."""


class _Meeting:
    """The two steps of one operation, in the store.

    Args:
        store: the part of the default store for the ranks that meet.
        population: these ranks.
        timeout: how long to wait for the others in each step; by default the timeout of the world.
    """

    def __init__(self, store: PrefixStore, population: _Population, timeout: timedelta | None) -> None:
        self._all = store
        self._store = PrefixStore(str(population.number), store)
        self._population = population
        of_the_world: timedelta = store.timeout  # type: ignore[attr-defined]  # missing in torch's stubs
        self._timeout = (timeout or of_the_world).total_seconds()
        self._asks = ""

    def come(self, request: str) -> None:
        """Say what this rank asks for, and wait for the others."""
        self._asks = request[:_SHOWN]
        mine = {"rank": dist.get_rank(), "asks": self._asks, "digest": sha256(request.encode()).hexdigest()}
        with self._reaching_the_store():
            first = json.loads(self._store.compare_set("first", "", json.dumps(mine)))
        differs = first["digest"] != mine["digest"]
        self._take_part("coming", {"differ": [first, mine]} if differs else None)

    def confirm(self, error: BaseException | None) -> None:
        """Say that this rank has made its groups, or why not, and wait for the others."""
        fault = error and {"rank": dist.get_rank(), "error": f"{type(error).__name__}: {error}"[:_SHOWN]}
        self._take_part("making", {"failed": fault} if fault else None)

    def refuse(self, error: str) -> None:
        """End the first step for all, because this rank was refused; does not wait."""
        with suppress(RuntimeError):  # without a store nobody waits for this rank
            self._arrive("coming", {"refused": {"rank": dist.get_rank(), "error": error[:_SHOWN]}})

    def _take_part(self, step: str, fault: dict[str, Any] | None) -> None:
        with self._reaching_the_store():
            self._arrive(step, fault)
            end = self._end_of(step)
        if step == "coming" and dist.get_rank() in end.get("missing", ()):
            raise _EndedWithoutUs
        if end and end.get("failed", {}).get("rank") != dist.get_rank():
            raise RanksDisagreeError(self._explain(step, end))

    @contextmanager
    def _reaching_the_store(self) -> Generator[None, None, None]:
        try:
            yield
        except RuntimeError as error:
            raise RanksDisagreeError(
                f"{self._asks}: the store of torch.distributed cannot be reached ({error}). Has the process that "
                "serves it ended, usually rank 0 or the launcher?"
            ) from error

    def _arrive(self, step: str, fault: dict[str, Any] | None) -> None:
        self._all.set(f"at/{dist.get_rank()}", self._place(step))
        if fault:
            self._store.compare_set(f"{step}/end", "", json.dumps(fault))
        if self._store.add(f"{step}/count", 1) == len(self._population.ranks):
            self._store.compare_set(f"{step}/end", "", "{}")
            if step == "coming":
                self._delete_previous()

    def _end_of(self, step: str) -> dict[str, Any]:
        """Wait for the end of a step; return an empty dictionary if it is good."""
        key = f"{step}/end"
        came = self._wait(key, self._timeout)
        # One rank finds out who is missing, the others wait for it.
        if not came and (self._store.add(f"{step}/late", 1) == 1 or not self._wait(key, _LEADER_SECONDS)):
            self._store.compare_set(key, "", json.dumps({"missing": self._missing(step)}))
        end: dict[str, Any] = json.loads(self._store.get(key))
        return end

    def _wait(self, key: str, seconds: float) -> bool:
        """Wait for a key; tell whether it came in time."""
        try:
            self._store.wait([key], timedelta(seconds=seconds))
        except RuntimeError:
            return self._store.check([key])
        return True

    def _missing(self, step: str) -> list[int]:
        keys = {rank: f"at/{rank}" for rank in self._population.ranks}
        there = (rank for rank, key in keys.items() if self._all.check([key]))
        came = {rank for rank in there if self._all.get(keys[rank]).decode() >= self._place(step)}
        return [rank for rank in self._population.ranks if rank not in came]

    def _place(self, step: str) -> str:
        """Return a text that sorts by how far a rank has come: "coming" is before "making"."""
        return f"{self._population.number:012d} {step}"

    def _delete_previous(self) -> None:
        """Delete the keys of the operation before, which all ranks have left by now."""
        before = PrefixStore(str(self._population.number - 1), self._all)
        for key in ("first", *(f"{step}/{kind}" for step in ("coming", "making") for kind in ("count", "end", "late"))):
            before.delete_key(key)

    def _explain(self, step: str, end: dict[str, Any]) -> str:
        nothing = "No process group was made." if step == "coming" else "The process groups made for it were destroyed."
        rule = "Call the same functions with the same arguments, in the same order, on every rank."
        if differ := end.get("differ"):
            told = " and ".join(f"rank {one['rank']} asks for {one['asks']}" for one in differ)
            return f"the ranks ask for different things: {told}. {nothing} {rule}"
        if refused := end.get("refused"):
            return f"{self._asks}: rank {refused['rank']} was refused ({refused['error']}). {nothing} {rule}"
        if failed := end.get("failed"):
            return f"{self._asks}: rank {failed['rank']} could not make its groups: {failed['error']}. {nothing}"
        missing = end["missing"]
        did = "did not call this" if step == "coming" else "did not finish this"
        who = f"rank{'s' if len(missing) > 1 else ''} {shown_ranks(missing)}"
        return f"{self._asks}: within {self._timeout:g} s, {who} {did}. {nothing} {rule}"


class Operation:
    """A call that may make process groups, made by several ranks together.

    Attributes:
        made: the groups made in it on this rank, until it is over.
        failed: whether it failed on some rank, so that its groups were destroyed.
    """

    def __init__(self, what: str, population: _Population, timeout: timedelta | None) -> None:
        self.made: list[ProcessGroup] = []
        self.failed = False
        self._what = what
        self._population = population
        self._timeout = timeout
        self._number = 0
        self._meeting: _Meeting | None = None

    @property
    def agreed(self) -> bool:
        """Whether the ranks have met."""
        return self._number > 0

    def agree(self, request: str) -> None:
        """Wait until all ranks have asked for the same.

        Args:
            request: what is asked for, the same text on all ranks that ask for the same.

        Raises:
            RanksDisagreeError: a rank asked for something else, was refused, or did not come in time. Nothing was made.
        """
        delete_what_groups_left()
        while (meeting := self._meet()) is not None:
            # What the others have called without this rank is over; this call is for the next meeting.
            with suppress(_EndedWithoutUs):
                meeting.come(f"{self._what}({request})")
                self._meeting = meeting
                return

    def confirm(self, error: BaseException | None = None) -> None:
        """Wait until all ranks have made their groups.

        Args:
            error: why this rank has not, for the message on the other ranks.

        Raises:
            RanksDisagreeError: another rank has not, and was the first.
        """
        meeting, self._meeting = self._meeting, None
        if meeting is not None:
            meeting.confirm(error)

    def refuse(self, error: Exception) -> None:
        """Let the other ranks, which may be waiting, know that this rank was refused; does not wait."""
        meeting = self._meet()
        if meeting is not None:
            meeting.refuse(str(error))

    def undo(self, error: BaseException) -> None:
        """Destroy the groups made on this rank, and let the other ranks know why.

        Raises:
            RanksDisagreeError: another rank failed first; this rank may have failed because of it.
        """
        self.failed = True
        try:
            self.confirm(error)
        finally:
            end_groups(self.made)

    def name_group(self, ranks: Sequence[int]) -> str:
        """Return a name for a group that no other group of this world has, the same on all of its ranks."""
        return f"automodel_mesh/{self._population.name}/{self._number}/{len(self.made)}/{ranks[0]}"

    def _meet(self) -> _Meeting | None:
        self._population.number += 1
        self._number = self._population.number
        store = self._population.store()
        return None if store is None else _Meeting(store, self._population, self._timeout)


_lock = threading.RLock()
_current: list[Operation] = []


@contextmanager
def operation(what: str, ranks: Sequence[int], timeout: timedelta | None = None) -> Generator[Operation, None, None]:
    """Run a block as an operation of some ranks; a process runs one at a time.

    Where it runs inside another one, it is a part of that. A `ValueError`, `TypeError` or `KeyError` that ends the
    block before the ranks have met is shown on the other ranks too.

    Args:
        what: the name of the public function.
        ranks: the ranks that call it.
        timeout: how long to wait for the others; by default the timeout of the world.
    """
    with _lock:
        if _current:
            yield _current[-1]
            return
        current = Operation(what, _population(ranks), timeout)
        _current.append(current)
        try:
            yield current
            if current.agreed:
                current.confirm()
        except BaseException as error:
            if current.agreed:
                current.undo(error)  # may raise the error of another rank, with this one as its context
            elif isinstance(error, (ValueError, TypeError, KeyError)):
                current.refuse(error)
            raise
        finally:
            current.made.clear()  # the table of the family keeps the operation, and must not keep its groups
            _current.clear()

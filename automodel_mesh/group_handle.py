"""`GroupHandle`: refers to a process group, which itself can be neither copied nor pickled."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup

from automodel_mesh.checks import shown_ranks, wrong_type
from automodel_mesh.compat import worlds
from automodel_mesh.errors import ProcessGroupDestroyedError


class GroupHandle:
    """A process group, by its name and its ranks; it does not keep a destroyed group alive.

    A copy, and what is unpickled, refers to the group of this name and these ranks in the world of that moment, as a
    copied mesh does.

    Args:
        name: the name of the group.
        ranks: its global ranks.
    """

    def __init__(self, name: str, ranks: tuple[int, ...]) -> None:
        self._name = name
        self._ranks = ranks
        self._group: weakref.ref[ProcessGroup] | None = None
        with suppress(KeyError):
            group = worlds.find_process_group(name)
            if tuple(dist.get_process_group_ranks(group)) == ranks:
                self._group = weakref.ref(group)

    @classmethod
    def of(cls, group: object) -> GroupHandle:
        """Return the handle of a process group.

        Raises:
            TypeError: the value is no `ProcessGroup`.
            ProcessGroupDestroyedError: the group was destroyed.
        """
        if not isinstance(group, ProcessGroup):
            raise wrong_type("process_group", group, "a torch ProcessGroup that this rank is in, or None")
        if not worlds.is_alive(group):
            raise ProcessGroupDestroyedError("process_group was destroyed: give one of the current world")
        return cls(group.group_name, tuple(dist.get_process_group_ranks(group)))

    def group(self) -> ProcessGroup:
        """Return the process group.

        Raises:
            ProcessGroupDestroyedError: it was destroyed, or this process had none of this name and these ranks when the
                handle was copied or unpickled.
        """
        group = None if self._group is None else self._group()
        if group is None or not worlds.is_alive(group):
            raise ProcessGroupDestroyedError(
                f"the process group {self._name!r} of the ranks {shown_ranks(self._ranks)} does not exist in this "
                "process: it was destroyed, or the context comes from another world. Build the context again."
            )
        return group

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupHandle) and (self._name, self._ranks) == (other._name, other._ranks)

    def __hash__(self) -> int:
        return hash((self._name, self._ranks))

    def __repr__(self) -> str:
        return f"<process group {self._name!r} of the ranks {shown_ranks(self._ranks)}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return type(self), (self._name, self._ranks)

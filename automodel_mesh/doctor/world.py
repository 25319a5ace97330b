"""What the checks of `automodel-mesh doctor` work with: the ranks and their shared mesh, and assertions about meshes.

The expected ranks are counted here, without the library's own arithmetic.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.compat.requests import shown_mesh
from automodel_mesh.compat.worlds import live_process_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from torch.distributed.device_mesh import DeviceMesh


class ContractBrokenError(AssertionError):
    """The library did not do what its contract says."""


class World:
    """The ranks that a check runs on, from the view of one of them, and the mesh that most checks share.

    Attributes:
        rank: this rank.
        size: the number of ranks.
        shape: the sizes of the axes of the shared mesh.
    """

    names: Final = ("pp", "dp", "tp")
    """The axes of the shared mesh, outermost first."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.shape = mesh_shape(size)

    @cached_property
    def root(self) -> DeviceMesh:
        """The mesh with the axes pp, dp and tp over all ranks."""
        return compat.init_device_mesh("cpu", self.shape, mesh_dim_names=self.names)

    def flatten(self, *names: str) -> DeviceMesh:
        """Flatten axes of the shared mesh into one, named by their names joined with `_`."""
        return compat.flatten(compat.slice_mesh(self.root, names))

    def require_axes(self, mesh: DeviceMesh, *names: str) -> None:
        """Require that a mesh derived from the shared one has these axes, with the right ranks and groups.

        Args:
            mesh: the mesh.
            *names: its axes: `"dp"` is an axis of the shared mesh, `"pp_tp"` one that `flatten` has made.
        """
        parts = [[self.names.index(part) for part in name.split("_")] for name in names]
        require_axes(mesh, self.rank, self.shape, parts)
        require_equal(f"the names of {shown_mesh(mesh)}", mesh.mesh_dim_names, names)
        require(compat.get_root_mesh(mesh) is self.root, f"{shown_mesh(mesh)} has another root")

    def require_sum(self, mesh: DeviceMesh) -> None:
        """Require that an all_reduce over a 1-D mesh adds up one contribution of each of its ranks, and no other."""
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = 1
        dist.all_reduce(counts, group=compat.get_group(mesh))
        shown = set(mesh.mesh.tolist())
        expected = [int(rank in shown) for rank in range(self.size)]
        require_equal(f"contributions of each rank to a sum over {shown_mesh(mesh)}", counts.tolist(), expected)


# --- expected ranks


def mesh_shape(ranks: int) -> tuple[int, int, int]:
    """Spread a number of ranks over three axes, as evenly as its factors allow, the largest first.

    Args:
        ranks: at least 1.

    Returns:
        Three sizes that multiply to `ranks`: 8 gives `(2, 2, 2)`, 12 `(3, 2, 2)`, 6 `(3, 2, 1)`.
    """
    sizes = [1, 1, 1]
    for factor in sorted(prime_factors(ranks), reverse=True):
        sizes[sizes.index(min(sizes))] *= factor
    largest, middle, least = sorted(sizes, reverse=True)
    return largest, middle, least


def stage_shape(ranks: int) -> tuple[int, int, int]:
    """Split a number of ranks into pipeline stages, as few as its factors allow, and each stage over two axes.

    Args:
        ranks: at least 1.

    Returns:
        Three sizes that multiply to `ranks`, the number of stages first: 8 gives `(2, 2, 2)`, 16 `(2, 2, 4)`.
    """
    stages = next(prime_factors(ranks), 1)
    outer, *rest = mesh_shape(ranks // stages)
    return stages, outer, math.prod(rest)


def prime_factors(number: int) -> Iterator[int]:
    """Yield the prime factors of a number, ascending."""
    factor = 2
    while number > 1:
        if number % factor:
            factor += 1
        else:
            yield factor
            number //= factor


def ranks_along(rank: int, shape: Sequence[int], dims: Iterable[int]) -> list[int]:
    """Return the ranks of the group that a rank is in, along one or several axes of a root mesh.

    Args:
        rank: one of the ranks of the mesh, which has them in row-major order.
        shape: the sizes of its axes.
        dims: the indices of the axes that the group extends along.

    Returns:
        The ranks that have the same coordinates as `rank` on all other axes, ascending.
    """
    fixed = set(range(len(shape))) - set(dims)
    own = coordinate_of(rank, shape)
    coordinates = ((other, coordinate_of(other, shape)) for other in range(math.prod(shape)))
    return [other for other, coordinate in coordinates if all(coordinate[dim] == own[dim] for dim in fixed)]


def coordinate_of(rank: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the coordinate of a rank in a mesh of all ranks in row-major order."""
    coordinate: list[int] = []
    for size in reversed(shape):
        rank, index = divmod(rank, size)
        coordinate.append(index)
    return tuple(reversed(coordinate))


# --- assertions


def require(condition: bool, otherwise: str) -> None:
    """Raise `ContractBrokenError` with the text `otherwise` unless the condition holds."""
    if not condition:
        raise ContractBrokenError(otherwise)


def require_equal(what: str, found: object, expected: object) -> None:
    """Raise `ContractBrokenError`, with both values, unless they are equal."""
    require(found == expected, f"{what}: expected {expected}, found {found}")


def require_axes(mesh: DeviceMesh, rank: int, shape: Sequence[int], parts: Sequence[Sequence[int]]) -> None:
    """Require that each axis of a mesh shows the right ranks, and that its group has exactly these.

    Args:
        mesh: a mesh that this rank is in.
        rank: this rank.
        shape: the sizes of the axes of its root.
        parts: for each axis of the mesh, the indices of the root's axes that it is made of.
    """
    require_equal(f"the number of axes of {shown_mesh(mesh)}", mesh.ndim, len(parts))
    coordinate = compat.get_coordinate(mesh)
    if coordinate is None:
        raise ContractBrokenError(f"rank {rank} has no coordinate in {shown_mesh(mesh)}")
    for dim, dims in enumerate(parts):
        expected = ranks_along(rank, shape, dims)
        line = tuple(slice(None) if other == dim else coordinate[other] for other in range(mesh.ndim))
        require_equal(f"the ranks that {shown_mesh(mesh)} shows along axis {dim}", mesh.mesh[line].tolist(), expected)
        require_equal(f"the ranks of the group of axis {dim} of {shown_mesh(mesh)}", ranks_of(mesh, dim), expected)
    all_ranks = ranks_along(rank, shape, {dim for dims in parts for dim in dims})
    require_equal(f"the ranks of {shown_mesh(mesh)}", sorted(mesh.mesh.flatten().tolist()), all_ranks)


def ranks_of(mesh: DeviceMesh, mesh_dim: int | str | None = None) -> list[int]:
    """Return the ranks of the process group along an axis."""
    return list(dist.get_process_group_ranks(compat.get_group(mesh, mesh_dim)))


@contextmanager
def require_new_groups(count: int) -> Generator[None, None, None]:
    """Require that the block makes this number of process groups on this rank."""
    before = live_process_groups()
    yield
    made = {name: ranks for name, ranks in live_process_groups().items() if name not in before}
    require(len(made) == count, f"expected {count} new process groups, found {len(made)}: {made}")


def require_error(expected: type[Exception], mentioning: str, call: Callable[[], Any]) -> None:
    """Require that a call raises this error, and that its message contains the text `mentioning`."""
    try:
        returned = call()
    except expected as error:
        require(mentioning in str(error), f"the {expected.__name__} does not mention {mentioning!r}: {error}")
    else:
        raise ContractBrokenError(f"no {expected.__name__} that mentions {mentioning!r}: the call returned {returned}")

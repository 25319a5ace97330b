"""Random programs of derivations: on every rank, every mesh and every group is the oracle's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch.distributed as dist
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from automodel_mesh.testing import fake_world, run_ranks
from tests.compat.oracle import Atoms, Grid


@dataclass
class Expected:
    """A mesh as the oracle sees it: its axes in atoms, by name, and how to make it."""

    axes: dict[str, Atoms]
    make: tuple[Any, ...]


@dataclass
class Program:
    """A grid, the native axes of its root, and derivations that are all valid."""

    grid: Grid
    native: tuple[Atoms, ...]
    outsiders: bool
    meshes: list[Expected] = field(default_factory=list)
    flattened: dict[str, Atoms] = field(default_factory=dict)

    def steps(self, axes: Sequence[Atoms]) -> list[int]:
        """Return the atoms of more than one rank along some axes."""
        return [atom for axis in axes for atom in axis if self.grid.shape[atom] > 1]

    def disjoint(self, axes: Sequence[Atoms]) -> bool:
        """Tell whether no rank step is there twice."""
        steps = self.steps(axes)
        return len(steps) == len(set(steps))


@st.composite
def programs(draw: st.DrawFn, *, largest: int, length: int = 6, world: int | None = None) -> Program:
    """A root over at most `largest` ranks and some derivations from it, in any order and from any mesh.

    Where the root leaves ranks of the `world` outside, groups are made from the root only: that is the one mesh which
    the ranks outside have, and they must take part.
    """
    shape: list[int] = []
    for size in draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)):
        if Grid((*shape, size)).world <= largest:
            shape.append(size)
    shape = shape or [1]
    cuts = [0, *(atom for atom in range(1, len(shape)) if draw(st.booleans())), len(shape)]
    native = tuple(tuple(range(left, right)) for left, right in pairwise(cuts))
    grid = Grid(tuple(shape))
    program = Program(grid, native, outsiders=world is not None and grid.world < world)
    program.meshes.append(Expected({f"n{dim}": axis for dim, axis in enumerate(native)}, ("root",)))
    for number in range(length):
        kind = draw(st.sampled_from(("flatten", "slice", "slice_flattened", "unflatten", "concatenate")))
        source = draw(st.integers(0, len(program.meshes) - 1))
        made = _derive(draw, program, kind, source, number)
        if made is not None:
            program.meshes.append(made)
    return program


def _derive(draw: st.DrawFn, program: Program, kind: str, source: int, number: int) -> Expected | None:
    """Draw one derivation of a kind, `None` where this mesh allows none."""
    if program.outsiders and kind in {"flatten", "unflatten"}:
        source = 0
    derivations = {
        "flatten": _derive_flattened,
        "slice": _derive_slice,
        "slice_flattened": _derive_slice_of_flattened,
        "unflatten": _derive_unflattened,
        "concatenate": _derive_concatenated,
    }
    return derivations[kind](draw, program, source, number)


def _derive_flattened(draw: st.DrawFn, program: Program, source: int, number: int) -> Expected | None:
    axes = program.meshes[source].axes
    steps = program.steps(list(axes.values()))
    if steps != sorted(steps) or len(axes) == 1:
        return None
    program.flattened[f"f{number}"] = tuple(atom for axis in axes.values() for atom in axis)
    return Expected({f"f{number}": program.flattened[f"f{number}"]}, ("flatten", source, f"f{number}"))


def _derive_slice(draw: st.DrawFn, program: Program, source: int, number: int) -> Expected | None:
    chosen = {name: axis for name, axis in program.meshes[source].axes.items() if draw(st.booleans())}
    return Expected(chosen, ("slice", source, tuple(chosen))) if chosen else None


def _derive_slice_of_flattened(draw: st.DrawFn, program: Program, source: int, number: int) -> Expected | None:
    if not program.flattened:
        return None
    name = draw(st.sampled_from(sorted(program.flattened)))
    return Expected({name: program.flattened[name]}, ("slice", source, (name,)))


def _derive_unflattened(draw: st.DrawFn, program: Program, source: int, number: int) -> Expected | None:
    axes = program.meshes[source].axes
    name = draw(st.sampled_from(sorted(axes)))
    cut = draw(st.integers(0, len(axes[name])))
    parts = {f"u{number}": axes[name][:cut], f"v{number}": axes[name][cut:]}
    new: dict[str, Atoms] = {}
    for old, axis in axes.items():
        new.update(parts if old == name else {old: axis})
    sizes = tuple(program.grid.size(part) for part in parts.values())
    return Expected(new, ("unflatten", source, name, sizes, tuple(parts)))


def _derive_concatenated(draw: st.DrawFn, program: Program, source: int, number: int) -> Expected | None:
    other = draw(st.integers(0, len(program.meshes) - 1))
    axes, more = program.meshes[source].axes, program.meshes[other].axes
    if set(axes) & set(more) or not program.disjoint([*axes.values(), *more.values()]):
        return None
    return Expected({**axes, **more}, ("concatenate", source, other))


def run_program(program: Program) -> None:
    """Make every mesh of a program on this rank and compare it with the oracle."""
    rank = dist.get_rank()
    inside = rank < program.grid.world
    meshes: list[Any] = []
    for expected in program.meshes:
        try:
            meshes.append(_make(program, meshes, expected))
        except compat.RankNotInMeshError:
            assert not inside
            meshes.append(meshes[0])
            continue
        if inside:
            _compare(program, meshes[0], meshes[-1], expected, rank)
    if inside:
        _compare_groups(program, rank)


def _make(program: Program, meshes: list[Any], expected: Expected) -> Any:
    kind, *arguments = expected.make
    if kind == "root":
        shape = tuple(program.grid.size(axis) for axis in program.native)
        return compat.init_device_mesh("cpu", shape, mesh_dim_names=tuple(expected.axes))
    source = meshes[arguments[0]]
    if kind == "flatten":
        return compat.flatten(source, arguments[1])
    if kind == "slice":
        return compat.slice_mesh(source, arguments[1])
    if kind == "unflatten":
        return compat.unflatten(source, *arguments[1:])
    return compat.concatenate([source, meshes[arguments[1]]])


def _compare(program: Program, root: Any, mesh: Any, expected: Expected, rank: int) -> None:
    axes = list(expected.axes.values())
    assert mesh.mesh_dim_names == tuple(expected.axes)
    assert mesh.mesh.tolist() == program.grid.mesh(axes, rank)
    assert compat.get_root_mesh(mesh) is root
    for dim, axis in enumerate(axes):
        assert dist.get_process_group_ranks(compat.get_group(mesh, dim)) == program.grid.group(axis, rank)


def _compare_groups(program: Program, rank: int) -> None:
    """No rank set has two groups, and there is no group but those of the axes and the default one."""
    everything = {tuple(range(dist.get_world_size()))}
    for expected in program.meshes:
        everything |= program.grid.distinct_groups(list(expected.axes.values()), rank)
    assert sorted(worlds.live_process_groups().values()) == sorted(everything)


@given(programs(largest=200), st.integers(0, 10**6))
@settings(derandomize=True, deadline=None, max_examples=150)
def test_any_program_is_right_on_any_rank(program: Program, pick: int) -> None:
    """Worlds of up to 200 ranks, seen from one of them."""
    with fake_world(program.grid.world, pick % program.grid.world):
        run_program(program)


def run_alone(program: Program) -> None:
    """Run a program, then destroy its groups, so that the next one starts with the default group only."""
    run_program(program)
    for name in list(worlds.live_process_groups())[1:]:
        dist.destroy_process_group(worlds.find_process_group(name))


def run_batch(programs_: list[Program]) -> None:
    """Run some programs one after the other in one world."""
    for program in programs_:
        run_alone(program)


@given(st.lists(programs(largest=8, world=8), min_size=5, max_size=5))
# No shrinking: each attempt would be a world of its own, for minutes. The failing batch says enough.
@settings(derandomize=True, deadline=None, max_examples=5, phases=(Phase.generate,))
def test_any_program_is_right_on_eight_real_ranks(batch: list[Program]) -> None:
    """Worlds of eight gloo ranks, the mesh over all or some of them; no rank hangs, every rank compares."""
    run_ranks(run_batch, 8, batch)

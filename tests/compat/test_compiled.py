"""Lookups inside `torch.compile`: constants of the compiled code, the same objects as outside."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import automodel_mesh
from automodel_mesh import compat
from automodel_mesh.testing import fake_world

# torch.compile advises another patch release of Python.
pytestmark = pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")

NAMES = ("dp_replicate", "dp_shard", "cp", "tp")

LOOKUPS: dict[str, Callable[[Any], Any]] = {
    "slice_mesh": lambda mesh: compat.slice_mesh(mesh, "tp"),
    "slice_mesh of several": lambda mesh: compat.slice_mesh(mesh, ("dp_cp", "tp")),
    "slice_mesh of a list": lambda mesh: compat.slice_mesh(mesh, ["dp_shard", "tp"]),
    "slice_mesh by keyword": lambda mesh: compat.slice_mesh(mesh, names="dp_shard"),
    "slice_mesh of a slice": lambda mesh: compat.slice_mesh(compat.slice_mesh(mesh, ("cp", "tp")), "tp"),
    "find_submesh": lambda mesh: compat.find_submesh(compat.slice_mesh(mesh, "tp"), "dp_cp"),
    "concatenate": lambda mesh: compat.concatenate([compat.slice_mesh(mesh, "tp"), compat.slice_mesh(mesh, "cp")]),
    "get_root_mesh": lambda mesh: compat.get_root_mesh(compat.slice_mesh(mesh, "tp")),
    "get_group": lambda mesh: compat.get_group(mesh, "tp"),
    "get_group of a flattened axis": lambda mesh: compat.get_group(mesh, "dp_cp"),
    "get_group of a slice": lambda mesh: compat.get_group(compat.slice_mesh(mesh, "cp")),
    "get_flat_mesh": lambda mesh: automodel_mesh.get_flat_mesh(mesh, "dp_cp"),
    "get_submesh": lambda mesh: automodel_mesh.get_submesh(mesh, ("dp_cp", "tp")),
    "get_fsdp_dp_mesh": automodel_mesh.get_fsdp_dp_mesh,
}


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    """A world of 16 ranks that communicate with nobody."""
    with fake_world(16, rank=5):
        yield


def build() -> DeviceMesh:
    """Build a root mesh with a flattened axis whose parts are not contiguous."""
    root = compat.init_device_mesh("cpu", (2, 2, 2, 2), mesh_dim_names=NAMES)
    compat.flatten(root, "dp_cp", dims=("dp_shard", "cp"))
    compat.flatten(root, "dp_shard_cp", dims=("dp_shard", "cp"))
    return root


class Counter:
    """A backend of `torch.compile` that runs the graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        """Count a graph."""
        self.graphs += 1
        return graph


def compiled(function: Callable[..., Any], *, fullgraph: bool = True, **options: Any) -> tuple[Any, Counter]:
    """Compile a function; return it with the counter of its graphs."""
    counter = Counter()
    return torch.compile(function, backend=counter, fullgraph=fullgraph, **options), counter


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_lookup_is_a_constant_of_one_graph(warm: bool) -> None:
    """Compiled code returns the same object as outside, in one graph, and is not compiled again for the second call."""
    # One test for all lookups: each test is a process, which imports the compiler.
    for name, lookup in LOOKUPS.items():
        root = build()
        if warm:
            lookup(root)
        inside, counter = compiled(lambda tensor, mesh, lookup=lookup: (tensor + 1, lookup(mesh)))
        first, second = (inside(torch.ones(2), root)[1] for _ in range(2))
        assert first is second is lookup(root), name
        assert counter.graphs == 1, name
        torch.compiler.reset()  # it compiles the same line of code a few times only


def test_an_axis_that_is_flattened_later() -> None:
    """Compiled code that found no axis of a name finds it once the axis is flattened."""
    root = build()
    sizes = automodel_mesh.MeshContext(root)
    inside, _ = compiled(lambda tensor: (tensor + 1, sizes.axis_size("dp")))
    assert inside(torch.ones(2))[1] is None
    compat.flatten(root, "dp", dims=("dp_replicate", "dp_shard"))
    assert inside(torch.ones(2))[1] == 4


def test_the_flattened_meshes() -> None:
    """The mapping of the flattened axes can be used inside compiled code, and has those that are flattened later."""
    root = build()
    inside, counter = compiled(lambda tensor, mesh, name: (tensor + 1, compat.flattened_meshes(mesh).get(name)))
    assert inside(torch.ones(2), root, "dp_cp")[1] is inside(torch.ones(2), root, "dp_cp")[1]
    assert counter.graphs == 1
    assert inside(torch.ones(2), root, "dp_cp")[1] is compat.slice_mesh(root, "dp_cp")
    assert inside(torch.ones(2), root, "dp")[1] is None
    flat = compat.flatten(root, "dp", dims=("dp_replicate", "dp_shard"))
    assert inside(torch.ones(2), root, "dp")[1] is flat


def test_all_lookups_in_one_graph() -> None:
    """Sizes, ranks and coordinates of the looked-up meshes and groups can be used for tensors in one graph."""
    root = build()

    def use(tensor: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
        sizes = automodel_mesh.get_submesh(mesh, ("dp_cp", "tp")).size(0)
        coordinate = compat.get_coordinate(mesh)
        assert coordinate is not None
        return tensor * sizes * compat.get_group(mesh, "tp").size() + coordinate[1] + coordinate[3]

    inside, counter = compiled(use)
    assert inside(torch.ones(2), root).tolist() == use(torch.ones(2), root).tolist() == [10, 10]
    assert counter.graphs == 1


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_the_sizes_of_a_context(dynamic: bool | None) -> None:
    """The sizes of a `MeshContext` are plain ints inside compiled code, also with dynamic shapes."""
    strategy = automodel_mesh.FSDP2Config()
    sizes = automodel_mesh.ParallelismSizes(tp_size=2, cp_size=2, dp_replicate_size=2)
    context = automodel_mesh.MeshContext.build(strategy, sizes)

    def all_sizes() -> tuple[Any, ...]:
        own = (context.tp_size, context.cp_size, context.pp_size, context.ep_size, context.dp_size)
        return (*own, context.dp_shard_size, context.dp_replicate_size, context.axis_size("dp_cp"), context.is_member)

    inside, counter = compiled(lambda tensor: (tensor * context.tp_size, *all_sizes()), dynamic=dynamic)
    for _ in range(2):
        tensor, *found = inside(torch.ones(2))
        assert tensor.tolist() == [2, 2]
        assert found == [*all_sizes()] == [2, 2, 1, 1, 4, 2, 2, 8, True]
        assert all(type(size) in (int, bool) for size in found)
    assert counter.graphs == 1


def test_a_mesh_that_is_closed_over() -> None:
    """A mesh need not be an argument of the compiled function: it may be a global or a variable of the function."""
    root = build()
    inside, counter = compiled(lambda tensor: (tensor + 1, compat.slice_mesh(root, "tp")))
    assert inside(torch.ones(2))[1] is compat.slice_mesh(root, "tp")
    assert counter.graphs == 1


def test_a_mesh_that_torch_made() -> None:
    """Lookups in a mesh of torch's making are constants too."""
    root = init_device_mesh("cpu", (4, 4), mesh_dim_names=("dp", "tp"))
    inside, counter = compiled(lambda tensor, mesh: (tensor + 1, compat.get_group(compat.slice_mesh(mesh, "tp"))))
    assert inside(torch.ones(2), root)[1] is inside(torch.ones(2), root)[1] is compat.get_group(root, "tp")
    assert counter.graphs == 1


def test_a_result_survives_a_graph_break() -> None:
    """A mesh and a group that were looked up before a graph break are the same objects after it."""
    root = build()

    compiler: Any = torch.compiler  # its functions have few types
    end_of_the_compiled_part = compiler.disable(lambda: None)

    def broken(tensor: torch.Tensor, mesh: DeviceMesh) -> tuple[torch.Tensor, DeviceMesh, Any]:
        part, group = compat.slice_mesh(mesh, "tp"), compat.get_group(mesh, "cp")
        tensor = tensor * part.size()
        end_of_the_compiled_part()
        return tensor + 1, part, group

    inside, counter = compiled(broken, fullgraph=False)
    for _ in range(2):
        tensor, part, group = inside(torch.ones(2), root)
        assert tensor.tolist() == [3, 3]
        assert part is compat.slice_mesh(root, "tp")
        assert group is compat.get_group(root, "cp")
    assert counter.graphs == 2


def test_another_axis_is_compiled_again_and_right() -> None:
    """A name that varies gives the right mesh each time, compiled once for each name."""
    root = build()
    inside, counter = compiled(lambda tensor, mesh, name: (tensor + 1, compat.slice_mesh(mesh, name)))
    for name in NAMES * 2:
        assert inside(torch.ones(2), root, name)[1] is compat.slice_mesh(root, name)
    assert counter.graphs == len(NAMES)


def test_another_mesh_gives_its_own_slices() -> None:
    """Compiled code that is called with another mesh looks up in that one."""
    first = build()
    second = compat.init_device_mesh("cpu", (4, 4), mesh_dim_names=("dp", "tp"))
    inside, counter = compiled(lambda tensor, mesh: (tensor + 1, compat.slice_mesh(mesh, "tp")))
    for mesh in (first, second) * 2:
        assert inside(torch.ones(2), mesh)[1] is compat.slice_mesh(mesh, "tp")
    assert counter.graphs == 2


def test_an_equal_mesh_gives_its_own_slices() -> None:
    """Compiled code that is called with an equal mesh, of the same ranks and names, looks up in that one."""
    first, second = build(), build()
    inside, _ = compiled(lambda tensor, mesh: (tensor + 1, compat.slice_mesh(mesh, "tp")))
    for mesh in (first, second) * 2:
        assert inside(torch.ones(2), mesh)[1] is compat.slice_mesh(mesh, "tp")


def test_a_closed_mesh_is_refused_and_an_equal_one_looked_up() -> None:
    """After a mesh is closed, compiled code refuses it, and looks up anew in an equal mesh that is built then."""
    first = build()
    inside, _ = compiled(lambda tensor, mesh: (tensor + 1, compat.slice_mesh(mesh, "tp")), fullgraph=False)
    inside(torch.ones(2), first)
    compat.destroy_process_groups(first)
    with pytest.raises(compat.ProcessGroupDestroyedError, match="was closed"):
        inside(torch.ones(2), first)
    second = build()
    assert inside(torch.ones(2), second)[1] is compat.slice_mesh(second, "tp")


def test_an_equal_mesh_in_another_world_is_looked_up() -> None:
    """Compiled code that was used in a world that is destroyed now looks up anew in an equal mesh of the next one."""
    inside, _ = compiled(lambda tensor, mesh: (tensor + 1, compat.slice_mesh(mesh, "tp")))
    inside(torch.ones(2), build())
    dist.destroy_process_group()
    with fake_world(16, rank=5):
        second = build()
        part = inside(torch.ones(2), second)[1]
        assert part is compat.slice_mesh(second, "tp")
        assert dist.get_process_group_ranks(compat.get_group(part)) == [4, 5]


@pytest.mark.parametrize("before", ["tensor", "nothing"])
def test_an_error_is_the_documented_one(before: str) -> None:
    """An unknown axis in compiled code raises the error that it raises outside, and it can be caught there."""
    root = build()

    def ask(tensor: torch.Tensor, mesh: DeviceMesh) -> tuple[torch.Tensor, DeviceMesh]:
        if before == "tensor":
            tensor = tensor + 1
        return tensor, compat.slice_mesh(mesh, "dp_cq")

    def caught(tensor: torch.Tensor, mesh: DeviceMesh) -> Any:
        try:
            return ask(tensor, mesh)
        except KeyError:
            return tensor - 1

    inside, _ = compiled(ask, fullgraph=False)
    for _ in range(2):
        with pytest.raises(compat.UnknownAxisError, match="did you mean 'dp_cp'"):
            inside(torch.ones(2), root)
    inside, _ = compiled(caught, fullgraph=False)
    assert inside(torch.ones(2), root).tolist() == [0, 0]
    compat.slice_mesh(root, "tp")


def test_a_rank_outside_gets_its_error() -> None:
    """On a rank outside the mesh a lookup in compiled code raises the error that it raises outside."""
    part = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    inside, _ = compiled(lambda tensor, mesh: (tensor + 1, compat.slice_mesh(mesh, "tp")), fullgraph=False)
    with pytest.raises(compat.RankNotInMeshError, match="rank 5 is not in"):
        inside(torch.ones(2), part)


def test_operations_that_make_groups_end_the_compiled_part() -> None:
    """Building, flattening, splitting and closing inside compiled code run outside of it, and give what they give."""

    def everything(tensor: torch.Tensor) -> tuple[torch.Tensor, DeviceMesh, DeviceMesh, DeviceMesh]:
        tensor = tensor + 1
        root = compat.init_device_mesh("cpu", (4, 4), mesh_dim_names=("dp", "tp"))
        flat = compat.flatten(root, "dp_tp")
        split = compat.unflatten(root, "dp", (2, 2), ("a", "b"))
        tensor = tensor * flat.size()
        compat.destroy_process_groups(root)
        return tensor, root, flat, split

    inside, _ = compiled(everything, fullgraph=False)
    tensor, root, flat, split = inside(torch.ones(2))
    assert tensor.tolist() == [32, 32]
    assert compat.get_root_mesh(flat) is compat.get_root_mesh(split) is root
    assert split.mesh.tolist() == torch.arange(16).view(2, 2, 4).tolist()


def test_a_frame_of_ours_is_never_compiled() -> None:
    """Where torch gives up on a user's function and compiles what it calls, it leaves our functions alone."""
    root = build()

    def generator(mesh: DeviceMesh) -> Iterator[DeviceMesh]:  # torch compiles no generator that was made outside
        yield compat.slice_mesh(mesh, "tp")
        yield automodel_mesh.get_fsdp_dp_mesh(mesh)

    def use(tensor: torch.Tensor, meshes: Iterator[DeviceMesh]) -> list[DeviceMesh]:
        return list(meshes)

    inside, counter = compiled(use, fullgraph=False)
    assert inside(torch.ones(2), generator(root)) == [
        compat.slice_mesh(root, "tp"),
        automodel_mesh.get_fsdp_dp_mesh(root),
    ]
    assert counter.graphs == 0


def test_a_collective_over_a_looked_up_group() -> None:
    """A collective takes a looked-up group inside compiled code."""
    root = build()

    def reduce(tensor: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
        tensor = tensor * 2
        dist.all_reduce(tensor, group=compat.get_group(mesh, "tp"))
        dist.all_reduce(tensor, group=compat.get_group(automodel_mesh.get_flat_mesh(mesh, "dp_cp")))
        return tensor

    inside, counter = compiled(reduce)
    inside(torch.ones(2), root)
    assert counter.graphs == 1


def test_the_lookups_of_a_context() -> None:
    """The methods of a `MeshContext` and of a `DistributedSetup` are constants too, for experts as well."""
    sizes = automodel_mesh.ParallelismSizes(dp_replicate_size=2, cp_size=2, tp_size=2, ep_size=4)
    setup = automodel_mesh.DistributedSetup.build("fsdp2", sizes)
    for holder in (setup.mesh_context, setup):

        def look_up(holder: Any = holder) -> tuple[DeviceMesh, ...]:
            found = (holder.flat_mesh("dp_cp"), holder.submesh(("dp_cp", "tp")), holder.fsdp_mesh())
            return (*found, holder.flat_mesh("ep"), holder.root_mesh(), holder.expert_mesh())

        inside, counter = compiled(lambda tensor, look_up=look_up: (tensor + 1, *look_up()))
        for _ in range(2):
            assert all(map(operator.is_, inside(torch.ones(2))[1:], look_up()))
        assert counter.graphs == 1
        torch.compiler.reset()

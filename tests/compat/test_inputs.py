"""Wrong input: each public function that takes a mesh refuses it with an error of ours that names the argument."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh import (
    DistributedSetup,
    FSDP2Config,
    MeshContext,
    ParallelismSizes,
    compat,
    initialize_distributed,
    mesh_utils,
)
from automodel_mesh.compat import worlds
from automodel_mesh.compat.family import family_of, lookups_of
from automodel_mesh.errors import MeshArgumentError, MeshTypeError
from automodel_mesh.testing import fake_world

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("dp", "cp", "tp")


def build() -> DeviceMesh:
    """Build a mesh of 8 ranks with three axes and a flattened one."""
    root = compat.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    compat.flatten(compat.slice_mesh(root, ("dp", "cp")), "dp_cp")
    return root


def fsdp_mesh() -> DeviceMesh:
    """Build a mesh with the axes that `get_fsdp_dp_mesh` looks for."""
    mesh = MeshContext.build(FSDP2Config(), ParallelismSizes(dp_replicate_size=2, cp_size=2)).device_mesh
    assert mesh is not None
    return mesh


VALID: dict[str, Callable[[], dict[str, Any]]] = {
    "abort_process_groups": lambda: {"mesh": build()},
    "backport": lambda: {"dry_run": True},
    "concatenate": lambda: {"meshes": [build()]},
    "describe": lambda: {"mesh": build(), "expert_mesh": None, "ranks_per_node": None},
    "destroy_process_groups": lambda: {"mesh": build()},
    "find_submesh": lambda: {"mesh": build(), "names": "tp"},
    "flatten": lambda: {"mesh": build(), "mesh_dim_name": "all", "dims": NAMES, "backend_override": None},
    "flattened_meshes": lambda: {"mesh": build()},
    "get_coordinate": lambda: {"mesh": build()},
    "get_group": lambda: {"mesh": build(), "mesh_dim": "tp"},
    "get_root_mesh": lambda: {"mesh": build()},
    "init_device_mesh": lambda: {
        "device_type": "cpu",
        "mesh_shape": (8,),
        "mesh_dim_names": ("dp",),
        "backend_override": None,
        "ranks": range(8),
        "timeout": None,
    },
    "newest": lambda: {"mesh": build()},
    "list_process_groups": lambda: {"mesh": build()},
    "refold": lambda: {
        "mesh": build(),
        "dims": NAMES,
        "mesh_sizes": (8,),
        "mesh_dim_names": ("x",),
        "backend_override": None,
    },
    "slice_mesh": lambda: {"mesh": build(), "names": "tp"},
    "torch_at_least": lambda: {"release": "2.6"},
    "unflatten": lambda: {
        "mesh": build(),
        "dim": "tp",
        "mesh_sizes": (2,),
        "mesh_dim_names": ("x",),
        "backend_override": None,
    },
    "create_ring_ulysses_mesh": lambda: {"device_mesh": build(), "ring_degree": 2, "ulysses_degree": 1},
    "get_flat_mesh": lambda: {"device_mesh": build(), "name": "tp"},
    "get_fsdp_dp_mesh": lambda: {
        "device_mesh": fsdp_mesh(),
        "dp_replicate_name": "dp_replicate",
        "dp_shard_cp_name": "dp_shard_cp",
    },
    "get_submesh": lambda: {"device_mesh": build(), "names": ("tp",)},
}
"""The arguments of a call that is right, for each public function that takes a mesh or makes one."""

RIGHT: dict[tuple[str, str], tuple[object, ...]] = {
    ("backport", "dry_run"): (True, False),
    ("describe", "expert_mesh"): (None,),
    ("describe", "ranks_per_node"): (None, 1),
    ("flatten", "mesh_dim_name"): (None, "x"),
    ("flatten", "dims"): (None,),
    ("flatten", "backend_override"): (None,),
    ("get_group", "mesh_dim"): (0, 1),
    ("init_device_mesh", "device_type"): ("x", torch.device("cpu")),
    ("init_device_mesh", "mesh_dim_names"): (None,),
    ("init_device_mesh", "backend_override"): (None, {}),
    ("init_device_mesh", "ranks"): (None,),
    ("init_device_mesh", "timeout"): (None,),
    ("refold", "dims"): (None,),
    ("refold", "backend_override"): (None, {}),
    ("unflatten", "dim"): (0, 1),
    ("unflatten", "backend_override"): (None, {}),
    ("create_ring_ulysses_mesh", "ulysses_degree"): (1,),
    ("get_fsdp_dp_mesh", "dp_replicate_name"): (None,),
    ("get_fsdp_dp_mesh", "dp_shard_cp_name"): (None,),
}
"""Those of the values below that are right for an argument after all."""


def strange_values() -> list[object]:
    """List values of many types, of which few are right in any place."""
    mesh = build()
    values: list[object] = [None, 0, 1, 1.5, True, "", "x", b"x", [], {}, set(), {"tp"}, {"tp": 2}.keys(), object()]
    values += [iter(["tp"]), (name for name in NAMES), [1.5], [None], [["tp"]], (["tp"],), [""], np.array([1, 2])]
    return [*values, MeshContext(process_group=dist.group.WORLD), torch.device("cpu"), mesh, torch.tensor([1, 2])]


def is_right(value: object, right: tuple[object, ...]) -> bool:
    """Tell whether a value is among those listed, of the same type."""
    return any(type(value) is type(one) and value == one for one in right)


def function_of(name: str) -> Callable[..., object]:
    """Return a public function by its name."""
    function: Callable[..., object] = getattr(compat, name, None) or getattr(mesh_utils, name)
    return function


def test_the_arguments_of_every_public_function_are_tried() -> None:
    """The table of calls has every public function that takes an argument about meshes, with all its arguments."""
    public = {name: getattr(module, name) for module in (compat, mesh_utils) for name in module.__all__}
    functions = {name: thing for name, thing in public.items() if inspect.isfunction(thing)}
    del functions["reset_mesh_registry"]  # takes no argument
    with fake_world(8):
        assert {name: [*inspect.signature(function).parameters] for name, function in functions.items()} == {
            name: [*valid()] for name, valid in VALID.items()
        }


@pytest.mark.parametrize("name", VALID)
def test_a_value_of_a_wrong_type_is_refused_by_an_error_that_names_the_argument(name: str) -> None:
    """Whatever is given for one argument, the call is right, or an error of ours names the argument or the value."""
    function = function_of(name)
    with fake_world(8):
        function(**VALID[name]())
        for argument in VALID[name]():
            for value in strange_values():
                if argument == "backend_override" and isinstance(value, str) and value:
                    continue  # the name of a backend, for all that can be seen from its type
                given = VALID[name]() | {argument: value}
                right = RIGHT.get((name, argument), ())
                mesh_fits = name != "get_fsdp_dp_mesh" and argument.endswith("mesh")
                if is_right(value, right) or (mesh_fits and isinstance(value, DeviceMesh)):
                    function(**given)
                    continue
                with pytest.raises((MeshTypeError, MeshArgumentError)) as caught:
                    function(**given)
                message = str(caught.value)
                assert argument.removeprefix("device_") in message or repr(value) in message, message
                assert len(message) <= 2100


def test_integers_of_numpy_and_of_torch_sizes_are_integers() -> None:
    """Sizes, ranks and indices may be NumPy's integers or a `torch.Size`; they are kept as plain ints."""
    two: Any = np.int64(2)
    four: Any = np.int32(4)
    one: Any = np.int64(1)
    eight: Any = [*np.arange(8)]
    true: Any = np.bool_(True)
    with fake_world(8):
        mesh = compat.init_device_mesh("cpu", (two, four), mesh_dim_names=("dp", "tp"), ranks=eight)
        assert mesh.mesh.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert compat.init_device_mesh("cpu", torch.Size([2, 4])).ndim == 2
        assert compat.get_group(mesh, one) is compat.get_group(mesh, "tp")
        assert compat.unflatten(mesh, one, [two, two], ("a", "b")).shape == (2, 2, 2)
        assert compat.init_device_mesh("cpu", (8,), backend_override={one - 1: "fake"}).ndim == 1
        with pytest.raises(TypeError, match=r"mesh_shape\[0\]=.*of type bool"):
            compat.init_device_mesh("cpu", (true, 8))
    sizes = ParallelismSizes(tp_size=two, dp_size=four)
    assert (type(sizes.tp_size), type(sizes.dp_size), sizes.tp_size) == (int, int, 2)


@pytest.mark.parametrize(
    "request_",
    [
        lambda mesh: compat.slice_mesh(mesh, "dp_pc"),
        lambda mesh: compat.find_submesh(mesh, "dp_pc"),
        lambda mesh: compat.get_group(mesh, "dp_pc"),
        lambda mesh: mesh_utils.get_flat_mesh(mesh, "dp_pc"),
        lambda mesh: compat.flatten(mesh, "x", dims=("cpp",)),
        lambda mesh: compat.unflatten(mesh, "cpp", (2, 1), ("a", "b")),
        lambda mesh: compat.unflatten(mesh, "tp", (2, 1), ("a", "b"), backend_override={"aa": "fake"}),
    ],
)
def test_the_nearest_name_is_offered_for_an_unknown_one(request_: Callable[[DeviceMesh], object]) -> None:
    """A mistyped name of an axis is a `KeyError` that says which name was probably meant."""
    with fake_world(8):
        mesh = build()
        with pytest.raises(KeyError, match=r"did you mean '(dp_cp|dp|cp|a)'"):
            request_(mesh)


def test_a_context_in_place_of_a_mesh_is_told_from_a_mesh() -> None:
    """A `MeshContext` given where a mesh is wanted is refused with the attribute to give."""
    with fake_world(8):
        context = MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2))
        with pytest.raises(TypeError, match=r"got MeshContext.*Give its \.device_mesh"):
            compat.slice_mesh(context, "tp")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "timeout", [timedelta(0), timedelta(seconds=-1), timedelta(microseconds=1), timedelta.max, 5.0, "5", 0]
)
def test_a_timeout_that_torch_cannot_wait_for_is_refused(timeout: Any) -> None:
    """A timeout is a `timedelta` from a millisecond to a hundred years, for a mesh and for the group of an axis."""
    with fake_world(8):
        with pytest.raises((ValueError, TypeError), match="init_device_mesh: timeout="):
            compat.init_device_mesh("cpu", (8,), timeout=timeout)
        with pytest.raises((ValueError, TypeError), match="backend_override: timeout="):
            compat.init_device_mesh("cpu", (8,), backend_override={0: compat.GroupSpec(timeout=timeout)})


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan"), 1e30, "5", True])
def test_a_number_of_minutes_that_torch_cannot_wait_for_is_refused(minutes: Any) -> None:
    """`timeout_minutes` is a number above 0 and at most a hundred years, refused with one message wherever it is."""
    calls: list[Callable[[], object]] = [
        lambda: MeshContext.build(FSDP2Config(), ParallelismSizes(), timeout_minutes=minutes),
        lambda: DistributedSetup.build("fsdp2", timeout_minutes=minutes),
        lambda: initialize_distributed("fake", timeout_minutes=minutes),
    ]
    messages: set[str] = set()
    with fake_world(8):
        for call in calls:
            with pytest.raises((MeshArgumentError, MeshTypeError)) as caught:
                call()
            messages.add(str(caught.value))
    (message,) = messages
    assert message.startswith(f"timeout_minutes={minutes!r} ")
    assert "give a number of minutes above 0, at most 52560000, or None for the backend's own timeout" in message


def test_a_string_alone_is_no_list_of_names() -> None:
    """`mesh_dim_names` is a list or tuple: of the string "a" torch takes the characters."""
    with fake_world(8):
        for names in ("a", "ab"):
            with pytest.raises(TypeError, match=f"mesh_dim_names='{names}' is of type str: give a list or tuple"):
                compat.init_device_mesh("cpu", (8,), mesh_dim_names=names)


def test_messages_are_short_however_long_the_request_is() -> None:
    """A message has some 2,000 characters at most, its beginning and its end."""
    many = (2,) * 5000
    with fake_world(8):
        mesh = build()
        requests: list[Callable[[], object]] = [
            lambda: compat.slice_mesh(mesh, "x" * 10_000),
            lambda: compat.slice_mesh(mesh, (1,) * 10_000),  # type: ignore[arg-type]
            lambda: compat.get_group(mesh, "x" * 10_000),
            lambda: compat.init_device_mesh("cpu", many),
            lambda: compat.init_device_mesh("cpu", many, mesh_dim_names=("a",)),
            lambda: compat.unflatten(mesh, "tp", many, ("a",)),
            lambda: compat.slice_mesh("x" * 10_000, "tp"),  # type: ignore[arg-type]
        ]
        for request in requests:
            with pytest.raises((MeshArgumentError, MeshTypeError)) as caught:
                request()
            assert 20 < len(str(caught.value)) <= 2100


def test_refused_lookups_are_not_remembered() -> None:
    """Ten thousand refused lookups add nothing to the caches of a mesh."""
    with fake_world(8):
        mesh = fsdp_mesh()
        family = family_of(mesh)

        def remembered() -> tuple[int, int]:
            answers = lookups_of(mesh, family).answers
            return sum(map(len, answers.values())), len(worlds.live_meshes())

        requests: list[Callable[[str], object]] = [
            lambda name: compat.slice_mesh(mesh, name),
            lambda name: compat.find_submesh(mesh, (name, "tp")),
            lambda name: mesh_utils.get_fsdp_dp_mesh(mesh, name),
            lambda name: mesh_utils.get_fsdp_dp_mesh(mesh, None, name),
        ]
        before = remembered()
        for request in requests:
            for count in range(2500):
                with pytest.raises(KeyError):
                    request(f"dp_{count}")
        assert remembered() == before

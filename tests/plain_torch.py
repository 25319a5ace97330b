"""Prints what torch's own calls do on the installed release: the results in `automodel_mesh/audit/behaviours.py`.

    python -m tests.plain_torch

Each call is made in its own forked process, as rank 5 of a fake world of 8 with a root mesh of the axes dp, cp and tp,
two ranks each. What `automodel_mesh.compat` changes in torch is undone first.
"""

from __future__ import annotations

import gc
import sys
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import torch

from automodel_mesh import compat
from automodel_mesh.audit.behaviours import BEHAVIOURS
from automodel_mesh.compat import worlds
from automodel_mesh.testing import fake_world, run_ranks
from tests.compat import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from automodel_mesh.audit.behaviours import Behaviour

NAMES = ("dp", "cp", "tp")


def build() -> Any:
    """Build the root mesh."""
    return plain.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)


def verdict(mesh: Any, wanted: list[int]) -> str:
    """Compare the ranks a mesh shows with those it should show."""
    return "works" if mesh.mesh.flatten().tolist() == wanted else "wrong ranks"


def slice_of_a_slice() -> str:
    """A slice of a slice."""
    root = build()
    mesh = plain.slice_mesh(plain.slice_mesh(root, ("dp", "cp")), "cp")
    return "works" if plain.get_root_mesh(mesh) is root else "its root is not the root"


def name_of_a_flattened_axis() -> str:
    """Flattening under the name of another flattened axis."""
    root = build()
    # Not a name of one letter: up to 2.9 torch checks whether the name is one of the letters of the names in use.
    plain.flatten(plain.slice_mesh(root, ("dp", "cp")), "fold")
    return verdict(plain.flatten(plain.slice_mesh(root, ("cp", "tp")), "fold"), [4, 5, 6, 7])


def name_of_a_native_axis() -> str:
    """Flattening under the name of a native axis, then slicing that axis."""
    root = build()
    plain.flatten(plain.slice_mesh(root, ("cp", "tp")), "dp")
    return verdict(plain.slice_mesh(root, ("dp", "cp")), [1, 3, 5, 7])


def own_name() -> str:
    """Flattening one axis to its own name."""
    root = build()
    line = plain.slice_mesh(root, "tp")
    same = plain.flatten(line, "tp") is line
    return "the mesh itself" if same and not plain.flattened_meshes(root) else "a duplicate"


def flattened_from_the_root() -> str:
    """Slicing a flattened axis from the root."""
    root = build()
    plain.flatten(plain.slice_mesh(root, ("dp", "cp")), "dp_cp")
    return verdict(plain.slice_mesh(root, "dp_cp"), [1, 3, 5, 7])


def flattened_across_a_gap() -> str:
    """Slicing a flattened axis from the root, of axes that are not contiguous."""
    root = build()
    plain.flatten(plain.slice_mesh(root, ("dp", "tp")), "dp_tp")
    return verdict(plain.slice_mesh(root, "dp_tp"), [0, 1, 4, 5])


def flattened_from_a_slice() -> str:
    """Slicing a flattened axis from a slice of the root."""
    root = build()
    plain.flatten(plain.slice_mesh(root, ("dp", "cp")), "dp_cp")
    return verdict(plain.slice_mesh(plain.slice_mesh(root, ("cp", "tp")), "dp_cp"), [1, 3, 5, 7])


def split(dim: int | str) -> str:
    """Split an axis of four ranks twice, and count the groups of the second time."""
    root = plain.init_device_mesh("cpu", (2, 4), mesh_dim_names=("pp", "rest"))
    plain.unflatten(root, dim, (2, 2), ("dp", "tp"))
    before = len(worlds.live_process_groups())
    plain.unflatten(root, dim, (2, 2), ("dp", "tp"))
    return f"works; again: {len(worlds.live_process_groups()) - before} new groups"


def split_by_index() -> str:
    """Splitting an axis, by its index."""
    return split(1)


def split_by_last_index() -> str:
    """Splitting an axis, by the index -1."""
    return split(-1)


def split_by_name() -> str:
    """Splitting an axis, by its name."""
    return split("rest")


def split_to_a_taken_name() -> str:
    """Splitting an axis, to a name the mesh has."""
    root = plain.init_device_mesh("cpu", (2, 4), mesh_dim_names=("pp", "rest"))
    names = plain.unflatten(root, 1, (2, 2), ("pp", "tp")).mesh_dim_names
    return "two axes of one name" if names == ("pp", "pp", "tp") else f"axes {names}"


def override_of_a_split() -> str:
    """`backend_override` of splitting an axis."""
    root = plain.init_device_mesh("cpu", (2, 4), mesh_dim_names=("pp", "rest"))
    chosen = {"dp": "fake"}
    plain.unflatten(root, 1, (2, 2), ("dp", "tp"), backend_override=chosen)
    return left_of(chosen)


def joined() -> str:
    """Joining meshes."""
    root = build()
    flat = plain.flatten(plain.slice_mesh(root, ("cp", "tp")), "cp_tp")
    before = len(worlds.live_process_groups())
    mesh = plain.concatenate([plain.slice_mesh(root, "dp"), flat])
    more = len(worlds.live_process_groups()) - before
    return "works" if plain.get_root_mesh(mesh) is root and not more else f"{more} new groups"


def override() -> str:
    """`backend_override` of `init_device_mesh`."""
    chosen = {"tp": "fake"}
    plain.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"), backend_override=chosen)
    return left_of(chosen)


def left_of(chosen: dict[str, str]) -> str:
    """Say what torch has left of the dictionary of backends that it was given."""
    return "works" if chosen else "empties your dictionary"


def axes_of_one_rank() -> str:
    """Groups for three axes of one rank."""
    before = len(worlds.live_process_groups())
    plain.init_device_mesh("cpu", (1, 1, 8, 1), mesh_dim_names=("a", "b", "c", "d"))
    alone = [ranks for ranks in worlds.live_process_groups().values() if len(ranks) == 1]
    return f"{len(alone)} groups" if before == 1 else "more groups than the default one"


def another_thread() -> str:
    """The root of a slice, in a second thread."""
    root = build()
    part = plain.slice_mesh(root, ("dp", "cp"))
    plain.flatten(part, "dp_cp")
    known: list[bool] = []

    def ask() -> None:
        known.append(plain.get_root_mesh(part) is root and "dp_cp" in plain.flattened_meshes(part))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return "found" if known == [True] else "not found"


def equal_roots() -> str:
    """Flattened axes of two equal roots."""
    first, second = build(), build()
    plain.flatten(plain.slice_mesh(first, ("dp", "cp")), "x")
    return "shared" if plain.flattened_meshes(second) else "separate"


def dropped() -> str:
    """A root and a slice of it without references."""
    root = build()
    gone = [weakref.ref(root), weakref.ref(plain.slice_mesh(root, "tp"))]
    del root
    gc.collect()
    return "stay in memory" if any(reference() is not None for reference in gone) else "are freed"


def dynamo() -> str:
    """The first slice of a process imports `torch._dynamo`."""
    before = "torch._dynamo" in sys.modules
    plain.slice_mesh(build(), "tp")
    return "yes" if "torch._dynamo" in sys.modules and not before else "no"


def sliced_in_compiled_code() -> str:
    """Slicing inside `torch.compile(fullgraph=True)`."""
    compiled = torch.compile(lambda tensor, mesh: (tensor + 1, mesh["tp"]), backend="eager", fullgraph=True)
    return verdict(compiled(torch.ones(2), build())[1], [4, 5])


def size_in_compiled_code() -> str:
    """The size of a slice inside `torch.compile(fullgraph=True)`."""
    compiled = torch.compile(lambda tensor, mesh: tensor + mesh["tp"].size(), backend="eager", fullgraph=True)
    return "works" if compiled(torch.ones(2), build()).tolist() == [3, 3] else "wrong"


def group_in_compiled_code() -> str:
    """`get_group` of an axis inside `torch.compile(fullgraph=True)`."""
    compiled = torch.compile(lambda tensor, mesh: (tensor + 1, mesh.get_group("cp")), backend="eager", fullgraph=True)
    root = build()
    return "works" if compiled(torch.ones(2), root)[1] is root.get_group("cp") else "another group"


def coordinate() -> str:
    """The type of a coordinate."""
    return type(plain.get_coordinate(build())).__name__


def outside() -> str:
    """`get_group` on a rank outside of the mesh."""
    mesh = plain.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    plain.get_group(mesh, "tp")
    return "a group"


def program(behaviour: Behaviour) -> Callable[[], str]:
    """Return the function that makes the call of a behaviour."""
    call: Callable[[], str] = globals()[behaviour.program]
    return call


def result_of(call: Callable[[], str]) -> str:
    """Make a call on torch as it is without this library, once in a process, and return its result in a few words."""
    plain.restore_torch()
    return observed(call)


def observed(call: Callable[[], str]) -> str:
    """Make a call and return the value, or the error that torch raises or that it is absent, and whether it warns."""
    with fake_world(8, rank=5), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Only Python 3.13.0 has this one, from torch.compile.
        warnings.filterwarnings("ignore", r"Guards may run slower on Python 3\.13\.0")
        try:
            found = call()
        except AttributeError as error:
            found = "absent" if "has no attribute" in str(error) else "AttributeError"
        except TypeError as error:
            found = "absent" if "unexpected keyword" in str(error) else "TypeError"
        except Exception as error:  # noqa: BLE001 - which error torch raises is the result
            found = type(error).__name__
    return f"{found}, warns" if caught else found


def main(names: Sequence[str]) -> None:
    """Print a line for each call, or for those of the programs that are named."""
    sys.stdout.write(f"torch {compat.TORCH_VERSION}\n")
    for behaviour in BEHAVIOURS:
        if names and behaviour.program not in names:
            continue
        (found,) = run_ranks(result_of, 1, program(behaviour), backend=None)
        sys.stdout.write(f"{behaviour.title}: {found}\n")


if __name__ == "__main__":
    main(sys.argv[1:])

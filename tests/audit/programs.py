"""Small programs that the rules for known behaviours find, and others that they must not find.

Each is one expression, about a root mesh of the axes `ROOT_AXES`, two ranks each, and meshes derived from it.
"""

from __future__ import annotations

from typing import Any, Final

ROOT_AXES: Final = ("dp", "cp", "tp")
KNOWN: Final[dict[str, dict[str, Any]]] = {
    "root": {"receiver": "root", "axes": ROOT_AXES},
    "hsdp": {"receiver": "slice", "axes": ("dp", "cp")},
    "line": {"receiver": "slice", "axes": ("tp",)},
    "part": {"receiver": "slice"},
    "flat": {"receiver": "flattened", "axes": ("dp_cp",)},
    "split": {"receiver": "unflattened"},
    "mesh": {},
}
"""What a reader of source text knows of the meshes in the programs; of `mesh`, nothing."""
FLATTENED: Final = {"dp_cp": ("dp", "cp"), "dp_tp": ("dp", "tp"), "all": (), "tp": ("tp",)}
"""The flattened axes that the reader has seen."""

CASES: Final[list[tuple[str, tuple[str, ...], tuple[str, ...]]]] = [
    (
        "slice_of_a_slice",
        ("root['dp', 'cp']['cp']", "hsdp['cp']", "hsdp[name]", "part[('cp',)]", "hsdp['cp'].get_group()"),
        (
            "root['cp']",
            "hsdp['dp', 'cp']",
            "line['tp']",
            "line[name]",
            "split['dp']",
            "flat['dp_cp']",
            "mesh['cp']",
        ),
    ),
    (
        "own_name",
        (
            "root['tp']._flatten('tp')",
            "root['tp']._flatten()",
            "root[('tp',)]._flatten(mesh_dim_name='tp')",
            "line._flatten(None)",
        ),
        (
            "root['tp']._flatten('other')",
            "root['tp']._flatten(name)",
            "root['dp', 'cp']._flatten()",
            "part._flatten('tp')",
            "line._flatten(backend_override='gloo', **options)",
        ),
    ),
    (
        "flattened_from_the_root",
        ("root['dp_cp']", "root['dp_cp', 'tp']", "mesh['dp_cp']", "root['all']"),
        (
            "root['dp', 'cp']",
            "root[name]",
            "root['dp_tp']",
            "split['dp_cp']",
            "flat['dp_cp']",
            "root['tp']",
            "root['other']",
        ),
    ),
    ("flattened_across_a_gap", ("root['dp_tp']",), ("root['dp_cp']", "mesh['dp_tp']")),
    (
        "flattened_from_a_slice",
        ("hsdp['dp_cp']", "root['cp', 'tp']['dp_cp']", "part['dp_tp']"),
        ("hsdp['cp']", "root['dp_cp']", "hsdp['tp']"),
    ),
    (
        "split_by_last_index",
        ("root._unflatten(-1, (1, 2), names)", "root._unflatten(dim=-1, mesh_sizes=(1, 2), mesh_dim_names=names)"),
        ("root._unflatten(1, (1, 2), names)", "root._unflatten(-2, (1, 2), names)", "root._unflatten(i, (1, 2))"),
    ),
    (
        "split_by_name",
        ("root._unflatten('tp', (1, 2), names)", "mesh._unflatten(mesh_sizes=(1, 2), dim='tp', mesh_dim_names=names)"),
        ("root._unflatten(1, (1, 2), names)", "root._unflatten(name, (1, 2), names)", "root._unflatten(*given)"),
    ),
    (
        "split_to_a_taken_name",
        (
            "root._unflatten(1, (1, 2), ('dp', 'x'))",
            "root._unflatten(1, (1, 2), mesh_dim_names=['x', 'tp'])",
            "root['dp', 'cp']._unflatten(0, (1, 2), ('x', 'cp'))",
        ),
        (
            "root._unflatten(1, (1, 2), ('x', 'y'))",
            "root._unflatten(1, (1, 2), ('cp', 'x'))",
            "root._unflatten(i, (1, 2), ('dp', 'x'))",
            "root._unflatten(3, (1, 2), ('dp', 'x'))",
            "mesh._unflatten(1, (1, 2), ('dp', 'x'))",
            "root._unflatten(1, (1, 2), ('dp', name))",
        ),
    ),
    (
        "override_of_a_split",
        ("root._unflatten(1, (1, 2), ('x', 'y'), backend_override=chosen)",),
        (
            "root._unflatten(1, (1, 2), ('x', 'y'), backend_override={'x': 'gloo'})",
            "root._unflatten(1, (1, 2), ('x', 'y'))",
        ),
    ),
    (
        "override",
        ("init_device_mesh('cpu', (8,), mesh_dim_names=('x',), backend_override=chosen)",),
        (
            "init_device_mesh('cpu', (8,), backend_override={'x': 'gloo'})",
            "init_device_mesh('cpu', (8,), backend_override=dict(chosen))",
            "init_device_mesh('cpu', (8,), backend_override=None)",
            "init_device_mesh('cpu', (8,), **options)",
        ),
    ),
    (
        "coordinate",
        (
            "mesh.get_coordinate() == (0, 1)",
            "table[mesh.get_coordinate()]",
            "seen.add(mesh.get_coordinate())",
            "hash(mesh.get_coordinate())",
            "{mesh.get_coordinate(): 1}",
            "{mesh.get_coordinate()}",
            "mesh.get_coordinate() + (0,)",
            "isinstance(mesh.get_coordinate(), tuple)",
            "[0, 1] != mesh.get_coordinate()",
            "mesh.get_coordinate() + [0]",
            "isinstance(mesh.get_coordinate(), list)",
            "mesh.get_coordinate().append(0)",
            "mesh.get_coordinate()[0] = 1",
        ),
        (
            "mesh.get_coordinate()[0]",
            "tuple(mesh.get_coordinate())",
            "mesh.get_coordinate() is None",
            "mesh.get_coordinate() == other.get_coordinate()",
            "mesh.get_coordinate() in [(0, 1)]",
            "mesh.get_coordinate().index(0)",
            "{1: mesh.get_coordinate()}",
            "isinstance(mesh.get_coordinate(), (list, tuple))",
        ),
    ),
]
"""For each behaviour: its program in `tests/plain_torch.py`, expressions that are affected, and others that are not."""

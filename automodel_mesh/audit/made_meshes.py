"""What source text tells about a mesh that a call or subscript makes: how it is made, and the names of its axes."""

from __future__ import annotations

import ast

from automodel_mesh.audit.patterns import MeshCall, Receiver, strings
from automodel_mesh.audit.values import Instance


def made_mesh(of: str, made: Receiver, axes: tuple[str, ...], mesh: Instance | None) -> Instance:
    """Return a mesh, whose root is that of another one if it is made from that."""
    root_axes = axes if mesh is None else mesh.axes if mesh.made == "root" else mesh.root_axes
    return Instance(of, made, axes, root_axes)


def made_by_call(of: str, function: str, node: ast.Call, mesh: Instance | None) -> Instance:
    """Return an object that a call makes, with what is known if it is a mesh.

    Args:
        of: its class.
        function: the last name of the function or method.
        node: the call.
        mesh: the object whose method it is.
    """
    call = MeshCall(node)
    if mesh is None:
        return made_mesh(of, "root", strings(call.argument("mesh_dim_names", 2)), None)
    if function.endswith("unflatten"):
        return made_mesh(of, "unflattened", (), mesh)
    return made_mesh(of, "flattened", strings(call.argument("mesh_dim_name", 0)), mesh)

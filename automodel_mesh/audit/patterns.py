"""What a reader of source text can know about a call on a mesh, and conditions on it, which the known behaviours use.

Nothing is run, and torch is not needed: a condition looks at the syntax tree, and at what the reader knows about the
mesh. Where it does not know enough, a condition is false.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, TypeGuard

Receiver: TypeAlias = Literal["root", "slice", "flattened", "unflattened", "mesh"]
"""What is known of the mesh that is called or sliced; `mesh` if it is one of these, or another."""


@dataclass(frozen=True)
class MeshCall:
    """A call on a mesh or about one, or a subscript of a mesh, in source text.

    Attributes:
        node: the call, or the subscript.
        receiver: what the mesh is.
        axes: the names of its axes, in their order; empty if they are not known. Those of a mesh that is sliced in the
            same expression, as in `mesh["tp"].size()`, are read from there.
        root_axes: the names of the axes of its root, in their order; empty if they are not known.
        flattened: the names of flattened axes that the same code makes, each with the names of the axes that it joins,
            or with none if those are not known.
        parent: the expression or statement that uses the result; `None` if it is not known.
        result: the expression in `parent` that has the result, such as a variable; the call itself if it is `None`.
    """

    node: ast.Call | ast.Subscript
    receiver: Receiver = "mesh"
    axes: tuple[str, ...] = ()
    root_axes: tuple[str, ...] = ()
    flattened: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    parent: ast.AST | None = None
    result: ast.expr | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a subscript has; empty for a call, and if they are not all in the text."""
        return _names(self.node)

    @property
    def axes_of_the_mesh(self) -> tuple[str, ...]:
        """The names of the axes of the mesh, also if they are only in the expression; empty if they are not known."""
        callee = self.node.func if isinstance(self.node, ast.Call) else self.node
        return self.axes or (_names(callee.value) if isinstance(callee, (ast.Attribute, ast.Subscript)) else ())

    @property
    def flattened_names(self) -> tuple[str, ...]:
        """The names in a subscript that are of flattened axes, and not also of axes of the mesh or of its root."""
        others = {*self.axes_of_the_mesh, *self.root_axes}
        return tuple(
            name
            for name in self.names
            if name in self.flattened and name not in others and self.flattened[name] != (name,)
        )

    def argument(self, name: str, position: int | None = None) -> ast.expr | None:
        """Return an argument of a call, by its keyword or else its position; `None` if it is not given in the text."""
        if not isinstance(self.node, ast.Call):
            return None
        for keyword in self.node.keywords:
            if keyword.arg == name:
                return keyword.value
        before = self.node.args if position is None else self.node.args[: position + 1]
        if position is None or len(before) <= position or any(isinstance(one, ast.Starred) for one in before):
            return None
        return before[position]


Condition: TypeAlias = Callable[[MeshCall], bool]
"""Whether a call is one that the behaviour is about."""

_MAY_BE_ROOTS: Final = ("root", "mesh")


# --- subscripts


def slices_a_slice(call: MeshCall) -> bool:
    """Tell whether a slice is sliced by axes of its own, and not by all of them, which gives the slice itself."""
    axes = call.axes_of_the_mesh
    itself = len(axes) == 1 if not call.names else axes == call.names
    return call.receiver == "slice" and not itself and not call.flattened_names


def slices_a_flattened_axis(call: MeshCall) -> bool:
    """Tell whether a name is of a flattened axis, and the mesh a root or one of which nothing is known."""
    return call.receiver in _MAY_BE_ROOTS and bool(call.flattened_names) and not _has_a_gap(call)


def slices_a_flattened_axis_with_a_gap(call: MeshCall) -> bool:
    """Tell whether the only name is of a flattened axis whose axes are not contiguous in the root."""
    return call.receiver in _MAY_BE_ROOTS and len(call.names) == 1 and _has_a_gap(call)


def slices_a_flattened_axis_from_a_slice(call: MeshCall) -> bool:
    """Tell whether a name is of a flattened axis, and the mesh a slice."""
    return call.receiver == "slice" and bool(call.flattened_names)


def _has_a_gap(call: MeshCall) -> bool:
    return any(_not_contiguous(call.flattened[name], call.root_axes) for name in call.flattened_names)


def _not_contiguous(axes: tuple[str, ...], root_axes: tuple[str, ...]) -> bool:
    if not set(axes) <= set(root_axes):
        return False
    places = sorted(root_axes.index(axis) for axis in axes)
    return bool(places) and places[-1] - places[0] >= len(places)


# --- calls


def flattens_to_its_own_name(call: MeshCall) -> bool:
    """Tell whether a mesh of one axis is flattened to the name of that axis, which is also the default."""
    name = call.argument("mesh_dim_name", 0)
    axes = call.axes_of_the_mesh
    same = isinstance(name, ast.Constant) and (name.value is None or (name.value,) == axes)
    given = isinstance(call.node, ast.Call) and bool(call.node.args or call.node.keywords)
    return len(axes) == 1 and (same or not given)


def splits_by_last_index(call: MeshCall) -> bool:
    """Tell whether the axis to split is given as -1."""
    return _value(call.argument("dim", 0)) == -1


def splits_by_name(call: MeshCall) -> bool:
    """Tell whether the axis to split is given by its name."""
    return isinstance(_value(call.argument("dim", 0)), str)


def splits_to_a_taken_name(call: MeshCall) -> bool:
    """Tell whether one of the new names is that of another axis of the mesh."""
    axes, split = call.axes_of_the_mesh, _value(call.argument("dim", 0))
    if isinstance(split, int) and -len(axes) <= split < len(axes):
        split = axes[split]
    new = strings(call.argument("mesh_dim_names", 2))
    return split in axes and any(name in axes and name != split for name in new)


def keeps_its_dictionary(call: MeshCall) -> bool:
    """Tell whether `backend_override` is a dictionary that can be used again: not one made in the call."""
    given = call.argument("backend_override")
    return given is not None and not isinstance(given, (ast.Constant, ast.Dict, ast.DictComp, ast.Call))


# --- what is done with a result


def needs_a_tuple(call: MeshCall) -> bool:
    """Tell whether the result is used as only a tuple can be, or where a list does something else."""
    parent, result = call.parent, call.result or call.node
    if isinstance(parent, ast.Subscript):
        return parent.slice is result  # a key of a dictionary, or an index of a tensor
    if isinstance(parent, ast.Dict):
        return result in parent.keys
    added_to_a_set = (
        isinstance(parent, ast.Call) and isinstance(parent.func, ast.Attribute) and parent.func.attr == "add"
    )
    hashed = isinstance(parent, ast.Set) or _calls(parent, "hash") or added_to_a_set
    return hashed or _is_with(parent, ast.Tuple, "tuple")


def needs_a_list(call: MeshCall) -> bool:
    """Tell whether the result is used as only a list can be, or where a tuple does something else."""
    parent, result = call.parent, call.result or call.node
    if isinstance(parent, ast.Subscript):
        return parent.value is result and not isinstance(parent.ctx, ast.Load)
    if isinstance(parent, ast.Attribute):
        return parent.attr in vars(list).keys() - vars(tuple).keys()
    return _is_with(parent, ast.List, "list")


def _is_with(parent: ast.AST | None, display: type[ast.expr], kind: str) -> bool:
    """Tell whether something is compared with or added to a display such as `(0, 1)`, or asked for its type."""
    if isinstance(parent, ast.Compare):
        equal = all(isinstance(operator, (ast.Eq, ast.NotEq)) for operator in parent.ops)
        return equal and any(isinstance(one, display) for one in (parent.left, *parent.comparators))
    if isinstance(parent, ast.BinOp):
        return isinstance(parent.op, ast.Add) and any(isinstance(one, display) for one in (parent.left, parent.right))
    return _calls(parent, "isinstance") and ast.unparse(parent.args[-1]) == kind


def _calls(node: ast.AST | None, name: str) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


# --- literals


def _names(node: ast.AST) -> tuple[str, ...]:
    return strings(node.slice) if isinstance(node, ast.Subscript) else ()


def strings(node: ast.AST | None) -> tuple[str, ...]:
    """Return the strings of a literal string, tuple or list; nothing if there is anything else."""
    value = _value(node)
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (tuple, list)) else ()
    return tuple(one for one in found if isinstance(one, str)) if all(isinstance(one, str) for one in found) else ()


def _value(node: ast.AST | None) -> object:
    """Return the value of a literal; `None` if it is none."""
    try:
        return None if node is None else ast.literal_eval(node)
    except (ValueError, TypeError):
        return None

"""Reads calls: those of torch's functions, and those that ask for versions, names or modules."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from automodel_mesh.audit.conditions import ALWAYS, Fallback, Has
from automodel_mesh.audit.expressions import Expressions
from automodel_mesh.audit.made_meshes import made_by_call
from automodel_mesh.audit.types_of_torch import type_of
from automodel_mesh.audit.values import (
    Context,
    Instance,
    Known,
    OwnClass,
    OwnFunction,
    OwnInstance,
    Parameters,
    Torch,
    TorchVersion,
    Truth,
    Value,
)
from automodel_mesh.audit.version_checks import VERSION_MAKERS, VERSION_OF_TORCH, checked_by


class Calls(Expressions):
    """Reads expressions with calls in them."""

    def _call(self, node: ast.Call, context: Context) -> Value:
        name = _last_name(node.func)
        owner: Value = None
        function = self.value(node.func, context)
        if isinstance(node.func, ast.Attribute):
            self.silent += 1
            owner = self.value(node.func.value, context)
            self.silent -= 1
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        arguments = [self.value(part, context) for part in given]
        asked = self._asked(node, name, arguments, context)
        if asked is None:
            asked = self._version(name, owner, function, arguments)
        if asked is not None:
            return asked
        if isinstance(function, OwnClass):
            return OwnInstance(function)
        return self._called(node, name, owner, function, context)

    def _called(self, node: ast.Call, name: str, owner: Value, function: Value, context: Context) -> Value:
        """Record a call of a function of torch, or of a method of one of its classes."""
        path, mesh = "", None
        if isinstance(function, Torch):
            path = function.path
            self.use(path, "call", node, context, given=function.given)
        elif isinstance(owner, Instance):
            path, mesh = f"{owner.path}.{name}", owner
            self.use(path, "call", node, context, bound=True, receiver=owner)
        made = type_of(path, called=True) if path else ""
        return made_by_call(made, name, node, mesh) if made else None

    # --- names and modules

    def _asked(self, node: ast.Call, name: str, arguments: Sequence[Value], context: Context) -> Value:
        """Read calls that ask for a name, a module or a signature; `None` for other calls."""
        first, second = (*arguments, None, None)[:2]
        if name in {"getattr", "hasattr"} and isinstance(second, Known) and isinstance(second.value, str):
            return self._getattr(node, name, first, second.value, context)
        if name in {"find_spec", "import_module", "__import__", "importorskip"} and isinstance(first, Known):
            return self._module(node, name, first.value, context)
        if name == "signature" and isinstance(first, Torch):
            return Parameters(first.path)
        return None

    def _getattr(self, node: ast.Call, name: str, first: Value, attribute: str, context: Context) -> Value:
        if isinstance(first, (Torch, Instance)):
            path = f"{first.path}.{attribute}"
        elif first is None and (of := self._told_by(attribute)):
            path = f"{of}.{attribute}"
        else:
            return first if isinstance(first, TorchVersion) else None
        if name == "hasattr":
            return Truth(Has(path))
        has_default = len(node.args) > 2
        if not has_default:
            self.use(path, "attribute", node, context)
        return Torch(path, Has(path) if has_default else ALWAYS) if isinstance(first, Torch) else None

    def _module(self, node: ast.Call, name: str, path: object, context: Context) -> Value:
        if not isinstance(path, str) or path.partition(".")[0] != "torch":
            return None
        if name == "find_spec":
            return Truth(Has(path))
        if name != "importorskip":
            self.use(path, "import", node, context)
        return Torch("torch" if name == "__import__" else path)

    # --- versions

    def _version(self, name: str, owner: Value, function: Value, arguments: Sequence[Value]) -> Value:
        """Read calls that return torch's version, or whether it is new enough; `None` for other calls."""
        first = arguments[0] if arguments else None
        of_a_version = isinstance(owner, TorchVersion) or TorchVersion() in arguments
        if name in VERSION_MAKERS and len(arguments) == 1 and isinstance(first, Known):
            return first
        if name == "version" and first == Known("torch"):  # of importlib.metadata
            return TorchVersion()
        condition = checked_by(name, (one.value for one in arguments if isinstance(one, Known)))
        if isinstance(function, OwnFunction) and (told := self._told(function)) is not None:
            return Truth(Fallback(told.condition, condition)) if condition and isinstance(told, Truth) else told
        if of_a_version or VERSION_OF_TORCH.fullmatch(name):
            return TorchVersion() if name not in {"startswith", "print", "warn"} else None
        return None if condition is None else Truth(condition)

    def _told(self, function: OwnFunction) -> Value:
        """Return what a function of the code that is read tells about torch's release."""
        raise NotImplementedError


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""

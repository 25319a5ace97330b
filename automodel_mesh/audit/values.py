"""What an audit knows about the values of names and expressions, and the uses of torch that it records."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from automodel_mesh.audit.conditions import ALWAYS, All, Condition, Constant, Not, any_of
from automodel_mesh.audit.findings import When
from automodel_mesh.audit.patterns import Receiver

if TYPE_CHECKING:
    from automodel_mesh.audit.reading import Reader


@dataclass(frozen=True)
class Torch:
    """A name of torch, which a variable has where a condition is true."""

    path: str
    given: Condition = ALWAYS


@dataclass(frozen=True)
class Instance:
    """An object of a class of torch.

    Attributes:
        path: the class.
        made: of a mesh, how it was made.
        axes: of a mesh, the names of its axes; empty if they are not known.
        root_axes: of a mesh, the names of the axes of its root; empty if they are not known.
    """

    path: str
    made: Receiver = "mesh"
    axes: tuple[str, ...] = ()
    root_axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TorchVersion:
    """The version of torch, or some of its numbers."""


@dataclass(frozen=True)
class Known:
    """A constant."""

    value: Any


@dataclass(frozen=True)
class Truth:
    """True or false, as a condition says."""

    condition: Condition


@dataclass(frozen=True)
class Parameters:
    """What `inspect.signature` of a name of torch, or its `parameters`, is."""

    path: str


@dataclass(frozen=True)
class OwnModule:
    """A module of the code that is read."""

    name: str


@dataclass(frozen=True, eq=False)
class OwnFunction:
    """A function of the code that is read."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    reader: Reader
    scope: Scope


@dataclass(frozen=True, eq=False)
class OwnClass:
    """A class of the code that is read, with what its attributes are known to be."""

    attributes: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class OwnInstance:
    """An object of such a class: `self` in its methods."""

    of: OwnClass


Own: TypeAlias = "OwnModule | OwnFunction | OwnClass | OwnInstance"
"""Something of the code that is read."""

Value: TypeAlias = "Torch | Instance | TorchVersion | Known | Truth | Parameters | Own | None"
"""`None` if nothing is known."""


class Scope:
    """The names of a module, class or function, and the scope around it."""

    def __init__(self, outer: Scope | None = None, *, of_class: bool = False) -> None:
        self.names: dict[str, Value] = {}
        self.outer = outer
        self.of_class = of_class

    def look_up(self, name: str) -> Value:
        """Return the value of a name; the names of a class are not seen in its methods."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names and (scope is self or not scope.of_class):
                return scope.names[name]
            scope = scope.outer
        return None

    def fork(self) -> Scope:
        """Return a copy for a branch."""
        copy = Scope(self.outer, of_class=self.of_class)
        copy.names = dict(self.names)
        return copy

    def merge(self, then: Scope, other: Scope, condition: Condition) -> None:
        """Take over the names of two branches, the first of which is run if a condition is true."""
        for name in {**then.names, **other.names}:
            one, two = then.names.get(name), other.names.get(name)
            self.names[name] = one if one == two else _one_of(one, two, condition)


def _one_of(one: Value, two: Value, condition: Condition) -> Value:
    """Return what is known of a value that is one of two."""
    truths = (truth_of(one), truth_of(two))
    if all(isinstance(value, (Known, Truth)) for value in (one, two)):
        first, second = truths
        return Truth(any_of([All((condition, first)), All((Not(condition), second))]))
    for value, where in ((one, condition), (two, Not(condition))):
        if isinstance(value, Torch):
            return Torch(value.path, All((value.given, where)))
    return None


def truth_of(value: Value) -> Condition:
    """Return the condition that a value is true."""
    match value:
        case Truth(condition):
            return condition
        case Known(constant):
            return Constant(bool(constant))
        case Torch(_, given):
            return given
        case _:
            return Constant(None)


@dataclass(frozen=True)
class Guard:
    """A condition under which some code runs, and its place, in words."""

    condition: Condition
    text: str


ANY_ERROR: Final = frozenset({"Exception", "BaseException"})


@dataclass(frozen=True)
class Handler:
    """The errors that are handled around some code, and the line of the `except`."""

    errors: frozenset[str]
    line: int

    @property
    def text(self) -> str:
        """The place in words."""
        return f"except {', '.join(sorted(self.errors))}, line {self.line}"


@dataclass(frozen=True)
class Context:
    """Where some code stands.

    Attributes:
        scope: the names that it sees.
        guards: what is true where it runs.
        handlers: what is handled around it, the outermost first.
        when: whether it runs when the module is imported.
    """

    scope: Scope
    guards: tuple[Guard, ...] = ()
    handlers: tuple[Handler, ...] = ()
    when: When = "import"


Way: TypeAlias = Literal["import", "attribute", "call", "subscript"]


@dataclass(frozen=True, eq=False)
class Use:
    """A place where a name of torch is used.

    Attributes:
        path: the name, as a dotted path.
        way: `import`, `attribute` (which includes strings given to `getattr`), `call` or `subscript`.
        node: the expression or statement.
        context: where it stands.
        bound: of a call, whether the first parameter is given by an object.
        receiver: of a call of a method, or a subscript, the object.
    """

    path: str
    way: Way
    node: ast.AST
    context: Context
    bound: bool = False
    receiver: Instance | None = None

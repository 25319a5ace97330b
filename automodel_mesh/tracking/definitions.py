"""Looks up names in Python sources without running them: their signature, and a fingerprint of their text.

A name is written like an entry point, the module before a colon:

    torch.distributed.device_mesh                              a module
    torch.distributed.device_mesh:DeviceMesh                   a class: what it is made with
    torch.distributed.device_mesh:DeviceMesh._flatten          a function, method or property
    torch.distributed.device_mesh:DeviceMesh._layout           an attribute: where it is declared or assigned to `self`
    torch.distributed.device_mesh:DeviceMesh.__init__(_layout) a parameter
    torch.distributed.device_mesh:DeviceMesh.*                 the names of all members of a class or module

Comments, docstrings and blank lines do not count. The rest is taken from the source as it is written, because
`ast.unparse` and `ast.dump` print the same tree differently on different Pythons. Names of C++ code are looked up in
its stub files.
"""

from __future__ import annotations

import ast
import hashlib
import io
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from platform import python_version
from typing import Final, TypeAlias, TypeGuard

from automodel_mesh.tracking.sources import PARSER_ERRORS, SourcesError

MODULE: Final = "module"
PROPERTY: Final = "property"
ATTRIBUTE: Final = "attribute"

_Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"


@dataclass(frozen=True)
class Definition:
    """What sources have under a name.

    Attributes:
        signature: the parameters with their defaults, `(self, mesh_dim=None)`; `module`, `property` or `attribute` for
            what is not called; for members, their names with commas between.
        text: the source without comments, docstrings and blank lines.
    """

    signature: str
    text: str

    @property
    def fingerprint(self) -> str:
        """A short hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def candidate_paths(module: str) -> tuple[str, ...]:
    """Return the possible files of a module: Python, a package, or the stub of C++ code."""
    path = module.replace(".", "/")
    return f"{path}.py", f"{path}/__init__.py", f"{path}.pyi"


class Definitions:
    """The definitions in the source files of one torch. Each file is parsed once.

    Args:
        files: text by path, as in `Sources.files`.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files
        self._modules: dict[str, _Module | None] = {}

    def find(self, name: str) -> Definition | None:
        """Return the definition of a name, `None` if there is none.

        Raises:
            SourcesError: the running Python cannot parse a file.
        """
        module_name, _, path = name.partition(":")
        module = self._module(module_name)
        if module is None:
            return None
        if not path:
            return Definition(MODULE, "")
        path, _, parameter = path.partition("(")
        nodes: list[ast.AST] = [module.tree]
        for part in path.split("."):
            if part == "*":
                names = sorted({name for node in nodes for name in _member_names(node)})
                return Definition(", ".join(names), "\n".join(names)) if nodes else None
            nodes = _without_overloads([found for node in nodes for found in _bound(node, part)])
        if not nodes:
            return None
        return module.parameter(nodes, parameter.rstrip(")")) if parameter else module.definition(nodes)

    def _module(self, name: str) -> _Module | None:
        if name not in self._modules:
            path = next((path for path in candidate_paths(name) if path in self._files), None)
            self._modules[name] = None if path is None else _Module(path, self._files[path])
        return self._modules[name]


class _Module:
    """A parsed file, with its lines without comments and docstrings."""

    def __init__(self, path: str, source: str) -> None:
        try:
            self.tree = ast.parse(source)
            self._lines = _significant_lines(source, self.tree)
        except (*PARSER_ERRORS, tokenize.TokenError) as error:
            line = f"line {error.lineno}" if isinstance(error, SyntaxError) else type(error).__name__
            raise SourcesError(
                f"{path}, {line}, is not valid for Python {python_version()}, which parses it: use the "
                "newest Python that this torch supports."
            ) from error

    def definition(self, nodes: Sequence[ast.AST]) -> Definition:
        """Describe what a name is bound to, by one statement or several."""
        texts = [self._text(part) for node in nodes for part in _significant_parts(node)]
        return Definition(self._signature(nodes[-1]), "\n".join(texts))

    def parameter(self, nodes: Sequence[ast.AST], name: str) -> Definition | None:
        """Describe a parameter of a function."""
        found = [one for node in nodes if isinstance(node, _FUNCTIONS) for one in self._parameters(node)]
        texts = [text for its_name, text in found if its_name.lstrip("*") == name]
        return Definition(texts[-1], texts[-1]) if texts else None

    def _signature(self, node: ast.AST) -> str:
        if isinstance(node, ast.ClassDef):
            constructors = [part for part in _bound(node, "__init__") if isinstance(part, _FUNCTIONS)]
            if constructors:
                return self._signature(constructors[-1])
            return f"({', '.join(name for name, _ in _fields(node))})"
        if not isinstance(node, _FUNCTIONS):
            return ATTRIBUTE
        if any("property" in ast.dump(one) or "setter" in ast.dump(one) for one in node.decorator_list):
            return PROPERTY
        return f"({', '.join(text for _, text in self._parameters(node))})"

    def _parameters(self, node: _Function) -> Iterator[tuple[str, str]]:
        """Yield the name and the text of each parameter, and of the bare `/` and `*`."""
        given = node.args
        positional = [*given.posonlyargs, *given.args]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
        for place, (one, default) in enumerate(zip(positional, [*defaults, *given.defaults], strict=True), 1):
            yield one.arg, self._with_default(one.arg, default)
            if place == len(given.posonlyargs):
                yield "/", "/"
        if given.vararg or given.kwonlyargs:
            star = f"*{given.vararg.arg}" if given.vararg else "*"
            yield star, star
        for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
            yield one.arg, self._with_default(one.arg, default)
        if given.kwarg:
            yield f"**{given.kwarg.arg}", f"**{given.kwarg.arg}"

    def _with_default(self, name: str, default: ast.expr | None) -> str:
        return name if default is None else f"{name}={' '.join(self._text(default, whole_lines=False).split())}"

    def _text(self, node: ast.AST, *, whole_lines: bool = True) -> str:
        first, last = line_range(node)
        lines = self._lines[first - 1 : last]
        if not whole_lines and isinstance(node, ast.expr):
            # Columns count bytes of UTF-8.
            encoded = [line.encode() for line in lines]
            encoded[-1] = encoded[-1][: node.end_col_offset]
            encoded[0] = encoded[0][node.col_offset :]
            lines = [line.decode() for line in encoded]
        return textwrap.dedent("\n".join(line.rstrip() for line in lines if line.strip()))


_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


def line_range(node: ast.AST) -> tuple[int, int]:
    """Return the first and the last line of a statement or expression, with its decorators."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    first: int = min([node.lineno, *(one.lineno for one in decorators)])  # type: ignore[attr-defined]
    return first, node.end_lineno  # type: ignore[attr-defined]


def _significant_lines(source: str, tree: ast.AST) -> list[str]:
    """Return the lines of a source, with docstrings and comments blanked."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and isinstance(first, ast.Expr) and _is_text(first.value):
            start, end = line_range(first)
            lines[start - 1 : end] = [""] * (end - start + 1)
    return lines


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a scope, including those inside `if`, `try` and `with`."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody", "handlers"):
            inner = getattr(node, part, None)
            if isinstance(inner, list) and not isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
                yield from _statements(inner)


def _bound(scope: ast.AST, name: str) -> list[ast.AST]:
    """Return the statements that bind a name in a module or class."""
    return [node for node, its_name in _bindings(scope) if its_name == name]


def _member_names(scope: ast.AST) -> Iterator[str]:
    """Yield the names that a module or class defines itself, without imports and double-underscore names."""
    for node, name in _bindings(scope):
        if not isinstance(node, ast.ImportFrom) and not (name.startswith("__") and name.endswith("__")):
            yield name


def _bindings(scope: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    body: list[ast.stmt] = getattr(scope, "body", [])
    node: ast.AST
    for node in _statements(body):
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield node, node.name
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, one.asname or one.name) for one in node.names)
        else:
            yield from ((node, target.id) for target in _targets(node) if isinstance(target, ast.Name))
    if isinstance(scope, ast.ClassDef):
        for node in ast.walk(scope):
            yield from ((node, target.attr) for target in _targets(node) if _is_of_self(target))


def _is_of_self(target: ast.expr) -> TypeGuard[ast.Attribute]:
    return isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"


def _targets(node: ast.AST) -> list[ast.expr]:
    found = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [part for target in found for part in (target.elts if isinstance(target, ast.Tuple) else [target])]


def _without_overloads(nodes: list[ast.AST]) -> list[ast.AST]:
    """Drop overloads if the function itself is there too, which it is not in stubs."""
    real = [
        node
        for node in nodes
        if not (isinstance(node, _FUNCTIONS) and any("overload" in ast.dump(one) for one in node.decorator_list))
    ]
    return real or nodes


def _significant_parts(node: ast.AST) -> list[ast.AST]:
    """Return the parts of a definition that are compared: of a class, its bases, fields and constructors."""
    if not isinstance(node, ast.ClassDef):
        return [node]
    constructors = [part for name in ("__init__", "__post_init__") for part in _bound(node, name)]
    return [*node.bases, *(field for _, field in _fields(node)), *constructors]


def _fields(node: ast.ClassDef) -> list[tuple[str, ast.AST]]:
    """Return the annotated names of a class, the fields of a dataclass."""
    return [
        (part.target.id, part)
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    ]

"""The names, signatures and defaults of NeMo AutoModel's modules: read, recorded, and compared with ours.

`python -m tests.drop_in.names` records those of the installed nemo-automodel in ci_matrix/nemo_api.json.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import json
import sys
from fnmatch import fnmatchcase
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import tomli

from automodel_mesh.nemo.replacement import REPLACED_MODULES, REPLACED_MODULES_0_4

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

    from tests.results import Row

CI_MATRIX: Final = Path(__file__).parents[2] / "ci_matrix"
RECORD: Final = CI_MATRIX / "nemo_api.json"
PACKAGE: Final = "nemo_automodel.components.distributed"

Names = dict[str, str]
"""For each name in a module, with its path in a class: its signature, `property`, or its value."""


def load_record() -> dict[str, dict[str, Names]]:
    """Return what is recorded: the names of each module, for each version."""
    record: dict[str, dict[str, Names]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def load_data() -> dict[str, Any]:
    """Return ci_matrix/nemo.toml."""
    return tomli.loads((CI_MATRIX / "nemo.toml").read_text(encoding="utf-8"))


def replaced_modules(version: str) -> Mapping[str, str]:
    """Return the modules of a version that are replaced, and the module here for each."""
    return REPLACED_MODULES_0_4 if version.startswith("0.4.") else REPLACED_MODULES


# --- read


def describe(module: ModuleType) -> Names:
    """Describe what a module defines, without what it imports."""
    found: Names = {}
    for name in _defined(module):
        value = getattr(module, name)
        found[name] = describe_value(value)
        if inspect.isclass(value):
            found |= {f"{name}.{member}": text for member, text in _members(value)}
    return found


def describe_value(value: object) -> str:
    """Describe a function or class by its signature, a property as one, and all else as `value`."""
    if isinstance(value, property):
        return "property"
    if inspect.isclass(value) and issubclass(value, enum.Enum):
        return "value"
    if inspect.isclass(value) or inspect.isroutine(value):
        return _signature(value)
    return "value"


def _defined(module: ModuleType) -> Iterator[str]:
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        yield from (target.id for target in targets if isinstance(target, ast.Name) and target.id not in _NO_NAMES)


_NO_NAMES: Final = ("__all__", "logger")


def _members(kind: type) -> Iterator[tuple[str, str]]:
    if issubclass(kind, enum.Enum):
        yield from ((member.name, f"= {member.value!r}") for member in kind)
        return
    for name, value in vars(kind).items():
        if not name.startswith("__") and (
            isinstance(value, (property, classmethod, staticmethod)) or inspect.isfunction(value)
        ):
            yield name, describe_value(value if isinstance(value, property) else getattr(kind, name))


def _signature(value: Any) -> str:
    fields: Any = dataclasses.fields(value) if hasattr(value, "__dataclass_fields__") else ()
    factories = {
        field.name: field.default_factory for field in fields if field.default_factory is not dataclasses.MISSING
    }
    parts, keyword_only = [], False
    for name, parameter in inspect.signature(value).parameters.items():
        if name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parts.append("*")
        default = "" if parameter.default is parameter.empty else f"={_shown(parameter.default, factories.get(name))}"
        stars = (
            "*"
            if parameter.kind is parameter.VAR_POSITIONAL
            else "**"
            if parameter.kind is parameter.VAR_KEYWORD
            else ""
        )
        keyword_only = keyword_only or stars == "*"
        parts.append(f"{stars}{name}{default}")
    return f"({', '.join(parts)})"


def _shown(default: object, factory: Any) -> str:
    value = default if factory is None else factory()
    return repr(str(value.value) if isinstance(value, enum.Enum) else value)


# --- compare


class Difference(NamedTuple):
    """A name here that is not as in NeMo AutoModel."""

    name: str
    """The module's last part, the name, and the parameter if it is one that differs: `mesh.MeshContext.build.ranks`."""
    what: str
    """What differs."""


def differences(tail: str, theirs: Names, ours: ModuleType) -> list[Difference]:
    """Compare what a module of NeMo AutoModel has with the module here.

    Args:
        tail: the module's name below `components.distributed`.
        theirs: what it has.
        ours: the module here.
    """
    found: list[Difference] = []
    for path, text in theirs.items():
        value: Any = ours
        for part in path.split("."):
            value = getattr(value, part, None)
        name = f"{tail}.{path}"
        if value is None:
            found.append(Difference(name, "missing"))
        elif text.startswith("("):
            found += [Difference(f"{name}.{parameter}", what) for parameter, what in _compare(text, _signature(value))]
        elif text.startswith("= ") and text != f"= {value.value!r}":
            found.append(Difference(name, f"{value.value!r} in place of {text[2:]}"))
    return found


class _Parameters(NamedTuple):
    positional: list[str]
    defaults: dict[str, str | None]
    takes_any: bool

    @classmethod
    def of(cls, text: str) -> _Parameters:
        (function,) = ast.parse(f"def f{text}: ...").body
        assert isinstance(function, ast.FunctionDef)
        given = function.args
        positional = [argument.arg for argument in given.args]
        values: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
        pairs = [*zip(positional, [*values, *given.defaults], strict=True)]
        pairs += zip([argument.arg for argument in given.kwonlyargs], given.kw_defaults, strict=True)
        defaults = {name: None if value is None else ast.unparse(value) for name, value in pairs}
        return cls(positional, defaults, given.kwarg is not None)

    def position(self, name: str) -> int | None:
        """Return the position of a parameter, `None` if it can only be given by name."""
        return self.positional.index(name) if name in self.positional else None


def _compare(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    """Yield the parameters with which a call written for theirs would fail here, or mean something else."""
    wanted, given = _Parameters.of(theirs), _Parameters.of(ours)
    for name, default in wanted.defaults.items():
        if name not in given.defaults:
            if not given.takes_any:
                yield name, "missing"
        elif name in wanted.positional and wanted.position(name) != given.position(name):
            yield name, f"at another position of {', '.join(given.positional)}"
        elif default is not None and given.defaults[name] != default:
            yield name, f"default {given.defaults[name]} in place of {default}"
    for name, default in given.defaults.items():
        if name not in wanted.defaults and default is None:
            yield name, "needed here"


# --- the command


def installed_names() -> tuple[str, dict[str, Names]]:
    """Return the installed version, and the names of its modules by their names below `components.distributed`."""
    version = metadata.version("nemo-automodel")
    modules = replaced_modules(version)
    return version, {name.removeprefix(f"{PACKAGE}."): describe(import_module(name)) for name in modules}


def check() -> Iterator[tuple[Row, bool]]:
    """Compare the installed version with what is recorded, and with ours; see `python -m tests.drop_in`."""
    version, names = installed_names()
    recorded = load_record().get(version) == names
    if not recorded:
        sys.stderr.write(f"{RECORD.name} is not what nemo-automodel {version} has: run nox -s drop-in -- record\n")
    found = [each for tail, part in names.items() for each in differences(tail, part, ours_of(version, tail))]
    unknown = [each for each in found if not is_known(each.name, version)]
    sys.stderr.writelines(f"{each.name}: {each.what}\n" for each in unknown)
    row = {
        "what": "names, with parameters and defaults",
        "plain": str(sum(map(len, names.values()))),
        "ours": f"{len(unknown)} differ" if unknown else f"{len(found)} differ on purpose, the others are the same",
    }
    yield row, recorded and not unknown


def ours_of(version: str, tail: str) -> ModuleType:
    """Return the module here for one of a version."""
    return import_module(replaced_modules(version)[f"{PACKAGE}.{tail}"])


def is_known(name: str, version: str) -> bool:
    """Tell whether ci_matrix/nemo.toml has a difference, with its reason."""
    data = load_data()
    wanted = [row["name"] for row in data["signatures"] if version in row["versions"]]
    return name in data["left_out"] or any(fnmatchcase(name, pattern) for pattern in wanted)


def record() -> None:
    """Write the names of the installed version into ci_matrix/nemo_api.json."""
    version, names = installed_names()
    known = (load_record() if RECORD.exists() else {}) | {version: names}
    RECORD.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()

"""Looks up dotted names of torch in one release: whether they exist, what they are, and which arguments they take."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Final, Literal, TypeAlias

from automodel_mesh.audit.torch_names import (
    CLASS,
    OPEN,
    REFERS,
    RETURNS,
    STUB,
    TYPED,
    TorchNames,
    known_releases,
    names_of,
)

State: TypeAlias = Literal["there", "missing", "unknown"]

_DYNAMIC: Final = ("torch.ops", "torch.classes")
"""What lies below is registered when the program runs."""

_COPIED: Final = ("torch._C._VariableFunctions", "torch._C")
"""The stubs whose names `torch` copies when it is imported; its own text has all its other names."""

_SET_ELSEWHERE: Final = re.compile(r"torch\.[a-z0-9_]+|torch\.\w+(\.sparse)?\.[A-Z]\w*Tensor")
"""What other packages add, such as the module of a device, and what C++ code adds."""

_WHOLE: Final = "torch._C:Tag"
"""The class whose stub is made from the list of its members; the stubs of other classes leave some out."""

_OF_EVERY_MODULE: Final = frozenset({"__name__", "__file__", "__doc__", "__path__", "__dict__", "__all__", "__spec__"})


@dataclass(frozen=True)
class Found:
    """What a release has under a dotted name.

    Attributes:
        state: `there`, `missing`, or `unknown`, if the sources do not tell.
        path: where it is defined, a class after a colon; of what is missing, the part that is missing, as it was asked
            for.
        entry: its entry in the data file; empty for modules and what is unknown.
    """

    state: State
    path: str = ""
    entry: str = ""


UNKNOWN: Final = Found("unknown")


class Release:
    """The names of one release.

    Args:
        names: the names of all releases.
        release: the release.
    """

    def __init__(self, names: TorchNames, release: str) -> None:
        self.name = release
        self._names = names
        self._known: dict[str, Found] = {}

    def find(self, path: str) -> Found:
        """Look up a dotted path that begins with `torch`, through re-exports and base classes."""
        if path not in self._known:
            self._known[path] = UNKNOWN  # of names that refer to each other
            self._known[path] = self._find(path)
        return self._known[path]

    def is_of_others(self, path: str) -> bool:
        """Tell whether a name that this release lacks may be added by another package, or by C++ code."""
        return _SET_ELSEWHERE.fullmatch(path) is not None

    def signatures(self, path: str) -> tuple[str, ...]:
        """Return the parameter lists of a function, or of what makes a class; none if they are not known."""
        found = self.find(path)
        if found.entry.startswith(CLASS):
            made = [self.find(f"{path}.{name}") for name in ("__new__", "__init__")]
            known = [one.entry for one in made if one.entry.startswith("(")]
            # With both, either may take what the other does not use.
            found = Found("there", "", known[0]) if len(known) == 1 else UNKNOWN
        if not found.entry.startswith("("):
            return ()
        return tuple(one.partition(RETURNS)[0] for one in found.entry.split("|"))

    def refuses(self, path: str, keywords: tuple[str, ...], positional: int | None, *, bound: bool) -> str:
        """Tell what of a call a function of this release, or what makes a class, does not take: see `refused`."""
        takes_self = bound or self.find(path).entry.startswith(CLASS)
        return refused(self.signatures(path), keywords, positional, bound=takes_self)

    def type_of(self, path: str, *, called: bool) -> str:
        """Return the class of what is found under a path, or of what calling it returns; empty if it is not known."""
        found = self.find(path)
        if not called:
            return self._class(found.entry[1:]) if found.entry.startswith(TYPED) else ""
        if found.entry.startswith(CLASS):
            return path
        returned = {one.partition(RETURNS)[2] for one in found.entry.split("|")} if found.entry else {""}
        return self._class(returned.pop()) if len(returned) == 1 else ""

    def _class(self, path: str) -> str:
        return path if path and self.find(path).entry.startswith(CLASS) else ""

    def _find(self, path: str) -> Found:
        scope = "torch"
        first, *parts = path.split(".")
        if first != "torch":
            return UNKNOWN
        for place, part in enumerate(parts):
            entry, rest = self._member(scope, part), parts[place + 1 :]
            # A package may import its own module, which then refers to itself.
            if entry in {None, f"{REFERS}{scope}.{part}"} and self._is_module(f"{scope}.{part}"):
                scope = f"{scope}.{part}"
            elif entry is None:
                return self._absent(scope, ".".join(["torch", *parts[: place + 1]]))
            elif entry.startswith(REFERS) or (entry.startswith(TYPED) and rest):
                return self._referred(entry[1:], rest)
            elif entry.startswith(CLASS):
                scope = f"{scope}{'.' if ':' in scope else ':'}{part}"
            else:
                return UNKNOWN if rest else Found("there", f"{scope}.{part}", entry)
        return Found("there", scope, CLASS if ":" in scope else "")

    def _is_module(self, path: str) -> bool:
        return ":" not in path and self._names.scope(path, self.name) is not None

    def _referred(self, target: str, rest: Sequence[str]) -> Found:
        """Return what a name has that refers to another one."""
        if self.find(target).state != "there":  # imported from a stub that leaves it out
            return UNKNOWN if rest else Found("there", target)
        return self.find(".".join([target, *rest]))

    def _absent(self, scope: str, asked: str) -> Found:
        """Return what is known of a name that a scope does not show."""
        part = asked.rpartition(".")[2]
        dynamic = part.startswith("__") or asked.startswith(_DYNAMIC) or self._may_have(scope, part)
        return UNKNOWN if dynamic else Found("missing", asked)

    def _member(self, scope: str, name: str) -> str | None:
        """Return the entry of a name in a scope, of a class also in the classes that it is derived from."""
        names = self._names.scope(scope, self.name)
        if names is None:
            return None
        if name in names:
            return names[name]
        if ":" not in scope:
            copied = _COPIED if scope == "torch" and not name.startswith("__") else ()
            found = (self._member(stub, name) for stub in copied)
            return next((one for one in found if one is not None), "" if name in _OF_EVERY_MODULE else None)
        for base in self._base_classes(names):
            if (entry := self._member(base, name)) is not None:
                return entry
        return "" if hasattr(object, name) and name not in {"__init__", "__new__"} else None

    def _base_classes(self, names: Mapping[str, str]) -> Iterator[str]:
        """Yield the scopes of the base classes that are torch's."""
        for base in _bases(names):
            found = self.find(base) if base.startswith("torch.") else UNKNOWN
            if found.entry.startswith(CLASS):
                yield found.path

    def _may_have(self, scope: str, name: str) -> bool:
        """Tell whether a scope may have a name that its sources do not show."""
        names = self._names.scope(scope, self.name)
        if names is None:
            return False
        if ":" not in scope:
            return STUB in names[""] or (OPEN in names[""] and scope != "torch")
        in_stub = STUB in (self._names.scope(scope.partition(":")[0], self.name) or {"": ""})[""]
        leaves_out = in_stub and scope != _WHOLE
        if leaves_out or "__getattr__" in names or "__getattribute__" in names:
            return True
        known = list(self._base_classes(names))
        others = [base for base in _bases(names) if not base.startswith("torch.")]
        unknown = len(known) + len(others) < len(_bases(names))
        return (
            unknown
            or any(_python_has(base, name) for base in others)
            or any(self._may_have(base, name) for base in known)
        )


def _bases(names: Mapping[str, str]) -> list[str]:
    """Return the dotted paths of the base classes of a class; `?` for those that are not known."""
    return [base for base in names[""].removeprefix(CLASS).split(",") if base]


@cache
def _python_has(path: str, name: str) -> bool:
    """Tell whether a class that is not torch's may have a member; only of those of Python itself it is known."""
    module, _, last = path.rpartition(".")
    if module.partition(".")[0] not in {"", *sys.stdlib_module_names} or path == "?":
        return True
    owner = getattr(import_module(module or "builtins"), last, None)
    return owner is None or hasattr(owner, name)


def all_releases() -> list[Release]:
    """Return all releases whose names are known, oldest first."""
    return [release_of(name) for name in known_releases()]


@cache
def release_of(name: str) -> Release:
    """Return a release whose names are known."""
    return Release(names_of(name), name)


# --- arguments


@cache  # most releases have the same signatures
def refused(signatures: tuple[str, ...], keywords: tuple[str, ...], positional: int | None, *, bound: bool) -> str:
    """Tell what of a call a function does not take.

    Args:
        signatures: its parameter lists, one for each overload; none if they are not known.
        keywords: the names of the keyword arguments.
        positional: the number of positional arguments; `None` if one is `*args`.
        bound: whether the first parameter is given by an object or class.

    Returns:
        The first keyword that no overload takes; `*` if there are too many positional arguments; empty if an overload
        takes the call.
    """
    if not signatures:
        return ""
    answers = [_refused(one, keywords, positional, bound=bound) for one in signatures]
    return "" if "" in answers else answers[0]


def _refused(signature: str, keywords: Collection[str], positional: int | None, *, bound: bool) -> str:
    parts = [part for part in signature.strip("()").split(",") if part]
    if any(part.startswith("**") for part in parts):
        return ""
    named = [part.rstrip("=") for part in parts if part not in {"/", "*"}]
    only_positional = parts[: parts.index("/")] if "/" in parts else []
    stars = [place for place, part in enumerate(parts) if part.startswith("*")]
    allowed = {part.lstrip("*") for part in named if not part.startswith("*")} - {
        one.rstrip("=") for one in only_positional
    }
    missing = next((one for one in keywords if one not in allowed), "")
    if missing:
        return missing
    if positional is None or any(parts[place] != "*" for place in stars):  # *args
        return ""
    places = [part for part in (parts[: stars[0]] if stars else parts) if part != "/"]
    return "*" if positional + bound > len(places) else ""

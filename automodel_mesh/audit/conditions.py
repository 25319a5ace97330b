"""Conditions of code that depend on the torch release: comparisons of its version, and whether it has a name.

A condition is evaluated for a release: `True`, `False`, or `None` if the text does not tell.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from packaging.version import InvalidVersion, Version

from automodel_mesh.audit.lookup import Release


class Condition(Protocol):
    """Something that is true or false on a release."""

    def on(self, release: Release) -> bool | None:
        """Evaluate it; `None` if the text of the code does not tell."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same on all releases."""

    value: bool | None

    def on(self, release: Release) -> bool | None:  # noqa: ARG002 - as of other conditions
        """Return the value."""
        return self.value


UNSURE: Final = Constant(None)
ALWAYS: Final = Constant(True)
NEVER: Final = Constant(False)


@dataclass(frozen=True)
class Fallback:
    """One condition, or another one on the releases for which the first is unknown."""

    first: Condition
    other: Condition

    def on(self, release: Release) -> bool | None:
        """Evaluate the first, and the other one if the first is unknown."""
        found = self.first.on(release)
        return self.other.on(release) if found is None else found


@dataclass(frozen=True)
class Has:
    """A name of torch exists."""

    path: str

    def on(self, release: Release) -> bool | None:
        """Look the name up."""
        return {"there": True, "missing": False, "unknown": None}[release.find(self.path).state]


@dataclass(frozen=True)
class Takes:
    """A function of torch has a parameter, as `inspect.signature` shows it."""

    path: str
    parameter: str

    def on(self, release: Release) -> bool | None:
        """Look the parameter up."""
        signatures = release.signatures(self.path)
        if not signatures:
            return None
        return any(self.parameter in one.replace("=", "").strip("()").split(",") for one in signatures)


@dataclass(frozen=True)
class Not:
    """Another condition is false."""

    condition: Condition

    def on(self, release: Release) -> bool | None:
        """Evaluate the other condition."""
        value = self.condition.on(release)
        return None if value is None else not value


@dataclass(frozen=True)
class All:
    """All of some conditions are true."""

    conditions: tuple[Condition, ...]

    def on(self, release: Release) -> bool | None:
        """Evaluate the conditions, all of them only if none is false."""
        values = [one.on(release) for one in self.conditions]
        return False if False in values else None if None in values else True


def any_of(conditions: Iterable[Condition]) -> Condition:
    """Return the condition that at least one is true."""
    return Not(All(tuple(map(Not, conditions))))


def is_about_torch(condition: Condition) -> bool:
    """Tell whether a condition asks for a version or name of torch, in any of its parts."""
    match condition:
        case Not(inner):
            return is_about_torch(inner)
        case All(parts):
            return any(map(is_about_torch, parts))
        case _:
            return not isinstance(condition, Constant)


def sure_part(condition: Condition) -> Condition:
    """Return a condition without those of its parts of which nothing is known."""
    match condition:
        case Constant(None):
            return ALWAYS
        case All(parts):
            return All(tuple(map(sure_part, parts)))
        case _:
            return condition


OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Compared:
    """The version of torch compared with a constant: a version, or some of its numbers."""

    sign: str
    constant: Version | tuple[int, ...]

    def on(self, release: Release) -> bool | None:
        """Compare the release."""
        version = Version(release.name)
        compare = OPERATORS[self.sign]
        if isinstance(self.constant, Version):
            return compare(version, self.constant)
        return compare(version.release[: len(self.constant)], self.constant)


_SWAPPED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def compared(sign: str, constant: object, *, swapped: bool = False) -> Condition:
    """Return the comparison of torch's version with a constant, `UNSURE` if the constant is not one of a version.

    Args:
        sign: an operator of Python.
        constant: a version as text or object, a tuple of numbers, or a number: the first one of the version.
        swapped: whether the constant stands at the left.
    """
    sign = _SWAPPED.get(sign, sign) if swapped else sign
    if sign not in OPERATORS:
        return UNSURE
    if isinstance(constant, int) and not isinstance(constant, bool):
        constant = (constant,)
    if isinstance(constant, tuple):
        return Compared(sign, constant) if constant and all(isinstance(one, int) for one in constant) else UNSURE
    try:
        return Compared(sign, Version(str(constant)))
    except InvalidVersion:
        return UNSURE

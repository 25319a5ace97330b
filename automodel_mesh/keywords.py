"""Unknown keywords are refused with the one that was probably meant, which Python itself does from 3.13 on at best."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

from automodel_mesh.checks import nearest
from automodel_mesh.errors import MeshTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

    _Target = TypeVar("_Target", bound=Callable[..., Any])

__all__ = ["suggest_keywords"]


def suggest_keywords(target: _Target) -> _Target:
    """Decorate a function or a class, so that an unknown keyword is an error that names the nearest one and all others.

    Args:
        target: a function; or a class, whose `__init__` is replaced, that of its subclasses too unless they have
            their own.

    Returns:
        The function, with the same signature; or the same class.
    """
    found: Any = target
    if not isinstance(found, type):
        return cast("_Target", _suggesting(found, found.__qualname__))
    found.__init__ = _suggesting(found.__init__, found.__name__)  # type: ignore[misc]
    return target


def _suggesting(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            _refuse_unknown(function, name, kwargs)
            raise

    return call


def _refuse_unknown(function: Callable[..., Any], name: str, kwargs: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [one.name for one in parameters if one.kind is not one.POSITIONAL_ONLY and one.name not in {"self", "cls"}]
    unknown = [keyword for keyword in kwargs if keyword not in known]
    if unknown:
        told = ", ".join(f"{keyword!r}{nearest(keyword, known)}" for keyword in unknown)
        raise MeshTypeError(f"{name} takes no keyword {told}: it takes {', '.join(known)}") from None

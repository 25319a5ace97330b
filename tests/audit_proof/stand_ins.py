"""Gives a module something to import where torch lacks a name or a package is not installed.

What comes after that line is then reached too.
Only the lines that failed get it: `hasattr` and `try` in other lines find torch as it is.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, ModuleType


class StandIn:
    """Takes the place of a name: can be called, subscripted, used as a decorator, a base class or an annotation."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name

    def __getattr__(self, name: str) -> StandIn:
        if name.startswith(("__", "_torchdynamo")):  # torch.compile would follow what a function wraps, without an end
            raise AttributeError(name)
        return StandIn(f"{self.__name__}.{name}")

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Return a function that is decorated with it as it is, and another stand-in otherwise."""
        decorates = len(arguments) == 1 and callable(arguments[0]) and not keywords
        return arguments[0] if decorates else self

    def __getitem__(self, item: Any) -> StandIn:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())  # by __getitem__ alone it would be endless

    def __or__(self, other: Any) -> StandIn:
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __instancecheck__(self, instance: Any) -> bool:
        return False

    def __subclasscheck__(self, subclass: Any) -> bool:
        return False


Line = tuple[str, int]
"""The path of a file, and a line in it."""


class StandIns:
    """Gives stand-ins to lines, and notes which names they asked for.

    Attributes:
        lines: the lines that get them.
        given: the lines with the names of torch that they got.
    """

    def __init__(self) -> None:
        self.lines: set[Line] = set()
        self.given: set[tuple[str, int, str]] = set()
        self._import: Final = builtins.__import__
        self._modules: set[str] = set()
        self._asked: set[tuple[Line, str]] = set()
        builtins.__import__ = self._import_for

    def add(self, line: Line, missing: str) -> bool:
        """Let a line have the name that it lacked; tell whether that may help, as it does once for each name."""
        if (line, missing) in self._asked:
            return False
        self._asked.add((line, missing))
        self.lines.add(line)
        module = missing
        while module := module.rpartition(".")[0]:
            with suppress(ImportError):
                self._give_from(importlib.import_module(module))
                break
        return True

    def _give_from(self, module: ModuleType) -> None:
        """Let a module of torch have stand-ins for what it lacks."""
        if module.__name__ in self._modules:
            return
        self._modules.add(module.__name__)
        own: Callable[[str], Any] | None = module.__dict__.get("__getattr__")

        def look_up(name: str) -> Any:
            if own is not None:
                with suppress(AttributeError):
                    return own(name)
            full = f"{module.__name__}.{name}"
            line = self._line(inspect.currentframe())
            if line is None or name.startswith("__"):
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}", name=name, obj=module)
            with suppress(ImportError):
                return importlib.import_module(full)
            if full.startswith("torch."):
                self.given.add((*line, full))
            return StandIn(full)

        module.__dict__["__getattr__"] = look_up

    def _import_for(self, name: str, *rest: Any, **given: Any) -> Any:
        """Import as Python does, but for a missing module where a line may have stand-ins."""
        try:
            return self._import(name, *rest, **given)
        except ModuleNotFoundError as error:
            line = self._line(inspect.currentframe())
            fromlist, level = self._asked_for(*rest, **given)
            if line is None or level or not f"{name}.".startswith(f"{error.name}."):
                raise
            if name.startswith("torch."):
                self.given |= {(*line, f"{name}.{each}") for each in fromlist} or {(*line, name)}
            top = name.partition(".")[0]
            return StandIn(name) if fromlist else sys.modules.get(top) or StandIn(top)

    @staticmethod
    def _asked_for(
        _globals: Any = None, _locals: Any = None, fromlist: Any = (), level: int = 0, **_: Any
    ) -> tuple[tuple[str, ...], int]:
        """Return the names after `from ... import`, and the number of dots before the module."""
        return tuple(fromlist or ()), level

    def _line(self, frame: FrameType | None) -> Line | None:
        """Return the line that runs in a frame, without those of the import system, if it may have stand-ins."""
        while frame is not None and frame.f_code.co_filename.startswith(("<frozen importlib", __file__)):
            frame = frame.f_back
        line = None if frame is None else (frame.f_code.co_filename, frame.f_lineno)
        return line if line in self.lines else None

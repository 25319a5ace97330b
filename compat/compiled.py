"""Lookups inside `torch.compile`: their results are constants of the compiled code, the same objects as outside.

`torch.compile` reads attributes of the functions that it meets. They are set here directly, because torch's functions
that set them import the compiler, which takes 0.8 s:

- `_torchdynamo_inline`: another function, which is traced in place of this one;
- `_dynamo_marked_constant`: the function is called while code is traced, and its result is a constant of that code;
- `_torchdynamo_disable`: the function is not traced; it is called between two compiled parts.

From 2.12 on it would be an internal error if torch compiled our own functions: they read attributes of a mesh that
torch does not expect. So torch is kept out of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from automodel_mesh.compat.eras import facts
from automodel_mesh.compat.eras.gate import era

Function = TypeVar("Function", bound=Callable[..., Any])


class _Results:
    """The results of lookups in compiled code, one attribute for each.

    Compiled code reads them from here. A result that torch itself stores as a constant cannot be returned from compiled
    code, or given to another lookup, from 2.12 on.

    Args:
        number: different for each object; compiled code is compiled again if it finds another one.
    """

    def __init__(self, number: int) -> None:
        self.number = str(number)  # an int that changes would become a symbol


class _Current:
    """Holds the results that are valid now."""

    results = _Results(0)


_current: Final = _Current()


def forget_compiled_lookups() -> None:
    """Let all compiled code look its meshes and groups up again: there are new ones, or some were closed.

    Up to 2.11 compiled code is used again for another mesh that is equal to the one it was compiled for.
    """
    _current.results = _Results(int(_current.results.number) + 1)


def constant_when_compiled(lookup: Function) -> Function:
    """Make the result of a lookup a constant inside `torch.compile`; outside nothing changes.

    An error of the lookup ends the compiled part there, and the lookup is called again outside of it, where it raises.

    Args:
        lookup: a function that makes no process group; the same arguments give the same object.
    """

    def find(_number: str, *args: Any, **kwargs: Any) -> str | None:
        try:
            result = lookup(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - an error here would be one of the compiler's
            _give_reason(again, error)
            return None
        key = f"{type(result).__name__}_{id(result)}"
        setattr(_current.results, key, result)
        return key

    def again(*args: Any, **kwargs: Any) -> Any:
        return lookup(*args, **kwargs)

    again = never_compiled(again)

    def traced(*args: Any, **kwargs: Any) -> Any:
        results = _current.results
        key = find(results.number, *args, **kwargs)  # from now on the number is compared before each call
        return again(*args, **kwargs) if key is None else getattr(results, key)

    cast("Any", find)._dynamo_marked_constant = True
    cast("Any", lookup)._torchdynamo_inline = traced
    _skip_frames_of(lookup)
    return lookup


def never_compiled(function: Function) -> Function:
    """Let `torch.compile` end the compiled part before this function and begin another after it."""
    outside: Any = era.outside_the_compiler(function)
    outside._torchdynamo_disable = True
    _skip_frames_of(outside)
    return cast("Function", outside)


def _give_reason(function: Callable[..., Any], error: Exception) -> None:
    """Let torch.compile say why the compiled part ends at this function."""
    cast("Any", function)._torchdynamo_disable_msg = f"{type(error).__name__}: {error}"


def _skip_frames_of(function: Callable[..., Any]) -> None:
    """Keep `torch.compile` out of the function's own frame, and of all that it calls."""
    if facts.FRAMES_CAN_BE_SKIPPED:
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy

        skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
        set_code_exec_strategy(function.__code__, skip)

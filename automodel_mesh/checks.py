"""Checks of sizes, ranks and names: each error names the argument, what was given, and what to give instead.

Without torch, so that a topology can be planned where torch is not installed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from datetime import timedelta
from numbers import Integral, Real
from operator import eq
from typing import Final, TypeGuard

from automodel_mesh.errors import MeshArgumentError, MeshTypeError

_SHOWN_RANKS: Final = 8
_SHORTEST_TIMEOUT: Final = timedelta(milliseconds=1)  # torch counts in milliseconds
_LONGEST_TIMEOUT: Final = timedelta(days=36_500)  # beyond 292 years the nanoseconds of a C++ clock overflow
_ALIKE: Final = ", the same on every rank"


def is_int(value: object) -> TypeGuard[int]:
    """Tell whether a value is an int, NumPy's included; bool is one too, but True as a size is a mistaken flag."""
    return type(value) is int or (not isinstance(value, bool) and isinstance(value, Integral))


def is_list(value: object) -> TypeGuard[Sequence[object]]:
    """Tell whether a value is a sequence other than a string or bytes, whose items would be characters."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def wrong_type(argument: str, value: object, wanted: str) -> MeshTypeError:
    """Return the error that a value has the wrong type.

    Args:
        argument: what the value is called in the message.
        value: the value.
        wanted: what to give instead.
    """
    return MeshTypeError(f"{argument}={shown(value)} is of type {type(value).__name__}: give {wanted}")


def listed(argument: str, value: object, wanted: str) -> Sequence[object]:
    """Return a value that must be a sequence of at least one item.

    Args:
        argument: what the value is called in messages.
        value: the value.
        wanted: what to give instead, for the message.

    Raises:
        TypeError: the value is not a sequence, or is a string.
        ValueError: the sequence is empty.
    """
    if not is_list(value):
        raise wrong_type(argument, value, wanted)
    if not value:
        raise MeshArgumentError(f"{argument} is empty: give {wanted}")
    return value


def check_size(name: str, value: object, *, optional: bool = False, wanted: str = "") -> None:
    """Require that a size is an int of at least 1: not a bool, a float or a string of digits.

    Args:
        name: what the size is called in messages.
        value: the size.
        optional: whether `None` is allowed.
        wanted: what to give instead, for the message; by default an int of at least 1, and `None` if it is allowed.

    Raises:
        TypeError: the value is not an int, or is `None` and `optional` is false.
        ValueError: the value is less than 1.
    """
    if value is None and optional:
        return
    wanted = wanted or "an int of at least 1" + (", or None" if optional else "")
    if not is_int(value):
        raise wrong_type(name, value, wanted)
    if value < 1:
        raise MeshArgumentError(f"{name}={value} is less than 1: give {wanted}")


def checked_sizes(argument: str, sizes: object) -> tuple[int, ...]:
    """Return sizes as a tuple, after checking that there is at least one and that each is an int of at least 1.

    Args:
        argument: what the sizes are called in messages.
        sizes: the sizes.

    Raises:
        TypeError: `sizes` is not a sequence, or a size is not an int.
        ValueError: there is no size, or a size is less than 1.
    """
    given = listed(argument, sizes, f"a list or tuple of sizes{_ALIKE}")
    for index, size in enumerate(given):
        check_size(f"{argument}[{index}]", size)
    return tuple(int(size) for size in given if is_int(size))


def checked_names(argument: str, names: object, *, single: bool = True) -> tuple[str, ...]:
    """Return names as a tuple of plain strings, after checking that there is at least one and none twice.

    A name may be a string enum, which prints as `Class.MEMBER` on some Pythons.

    Args:
        argument: what the names are called in messages.
        names: a name, or a sequence of names. A set is refused: its order differs from rank to rank.
        single: whether a string alone is allowed, as one name.

    Raises:
        TypeError: `names` is neither a string nor a sequence, or a name is not a string.
        ValueError: there is no name, a name is empty, or one is given twice.
    """
    one = single and isinstance(names, str)
    given = (names,) if one else listed(argument, names, f"a list or tuple of names{_ALIKE}")
    check_each_name(argument, given)
    plain = tuple(str.__str__(name) for name in given if isinstance(name, str))
    repeated = sorted({name for name in plain if plain.count(name) > 1})
    if repeated:
        raise MeshArgumentError(f"{argument}={plain} repeats {', '.join(repeated)}: give each name once")
    return plain


def checked_name(argument: str, name: object) -> str:
    """Return a name as a plain string, after checking that it is a string that is not empty.

    Args:
        argument: what the name is called in messages.
        name: the name.

    Raises:
        TypeError: the name is not a string.
        ValueError: the string is empty.
    """
    if not isinstance(name, str):
        raise wrong_type(argument, name, "a name, as a string")
    if not name:
        raise MeshArgumentError(f"{argument} is an empty string: give a name")
    return str.__str__(name)


def check_each_name(argument: str, names: Sequence[object]) -> None:
    """Require that each item of a sequence is a string that is not empty.

    Args:
        argument: what the sequence is called in messages.
        names: the sequence.

    Raises:
        TypeError: an item is not a string.
        ValueError: a string is empty.
    """
    for index, name in enumerate(names):
        checked_name(f"{argument}[{index}]", name)


def check_same_length(names: Sequence[str], sizes: Sequence[int], what: str) -> None:
    """Require as many names as sizes."""
    if len(names) != len(sizes):
        raise MeshArgumentError(
            f"{what}: {len(sizes)} sizes {tuple(sizes)} but {len(names)} names {tuple(names)}: give one name for each "
            "size"
        )


def check_timeout(argument: str, timeout: object) -> None:
    """Require that a timeout is `None`, or a timedelta that torch can wait for.

    Args:
        argument: what the timeout is called in messages.
        timeout: the timeout.

    Raises:
        TypeError: the value is not a `timedelta`.
        ValueError: it is shorter than a millisecond, or longer than torch can count.
    """
    if timeout is None:
        return
    if not isinstance(timeout, timedelta):
        raise wrong_type(argument, timeout, "a datetime.timedelta, or None")
    if not _SHORTEST_TIMEOUT <= timeout <= _LONGEST_TIMEOUT:
        raise MeshArgumentError(
            f"{argument}={timeout} cannot be waited for: give from a millisecond to {_LONGEST_TIMEOUT.days} days, "
            "or None"
        )


def timeout_of_minutes(argument: str, minutes: object) -> timedelta | None:
    """Return minutes as a timeout; `None` stands for that of the backend.

    Args:
        argument: what the number is called in messages.
        minutes: the number.

    Raises:
        TypeError: the value is not a number.
        ValueError: it is not a number above 0 that torch can count.
    """
    if minutes is None:
        return None
    most = int(_LONGEST_TIMEOUT / timedelta(minutes=1))
    wanted = f"a number of minutes above 0, at most {most}, or None for the backend's own timeout"
    if isinstance(minutes, bool) or not isinstance(minutes, Real):
        raise wrong_type(argument, minutes, wanted)
    try:
        timeout = timedelta(minutes=float(minutes))
        check_timeout(argument, timeout)
    except (ValueError, OverflowError):  # not a number; infinite
        raise MeshArgumentError(f"{argument}={shown(minutes)} cannot be waited for: give {wanted}") from None
    return timeout


def checked_ranks(ranks: object, world_size: int | None = None, *, why_ascending: str | None = "") -> Sequence[int]:
    """Return ranks, after checking that they are distinct, ascending, not negative and inside the world.

    Args:
        ranks: global ranks: the position in the list is the position in the mesh.
        world_size: number of ranks in the world; `None` if it is not known.
        why_ascending: the reason, for the message, if there is more to say; `None` if the ranks may have any order.

    Returns:
        The same ranks: a `range` if they ascend evenly spaced (it is not listed, however long), else a tuple.

    Raises:
        TypeError: `ranks` is not a sequence, or an item is not an int.
        ValueError: `ranks` is empty, not distinct, not ascending, negative, or not inside the world.
    """
    items = listed("ranks", ranks, f"a list of ints, such as [0, 1, 2]{_ALIKE}")
    descends = isinstance(ranks, range) and ranks.step < 0 and len(ranks) > 1
    if descends and why_ascending is not None:
        raise MeshArgumentError(
            f"ranks={ranks} descends: ranks must be strictly ascending{why_ascending}; give {items[::-1]}"
        )
    given = ranks if isinstance(ranks, range) and not descends else _compact(_distinct(items, why_ascending))
    lowest, highest = (given[0], given[-1]) if isinstance(given, range) else (min(given), max(given))
    if lowest < 0:
        raise MeshArgumentError(f"ranks[{given.index(lowest)}]={lowest} is negative: give global ranks, counted from 0")
    if world_size is not None and highest >= world_size:
        index = next(index for index, rank in enumerate(given) if rank >= world_size)
        raise MeshArgumentError(
            f"ranks[{index}]={given[index]} is outside the world: with world_size={world_size}, "
            f"give ranks from 0 to {world_size - 1}"
        )
    return given


def shown_ranks(ranks: Sequence[int]) -> str:
    """Print ranks for a message, shortened if there are many."""
    if len(ranks) <= 2 * _SHOWN_RANKS:
        return ", ".join(map(str, ranks))
    if isinstance(ranks, range) and ranks.step == 1:
        return f"{ranks[0]} to {ranks[-1]}"
    return f"{', '.join(map(str, ranks[:_SHOWN_RANKS]))}, ..., {ranks[-1]} ({len(ranks)} ranks)"


def shown(value: object) -> str:
    """Print a value for a message, by its type alone if it cannot be printed."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - anything, as of a mesh whose world is gone
        return f"<{type(value).__name__}>"


def nearest(name: object, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the known name that is nearest to a mistyped one, else an empty string."""
    choices = list(known)
    close = difflib.get_close_matches(str(name), choices, n=1) or [x for x in choices if x.startswith(f"{name}_")]
    return f" (did you mean {close[0]!r}?)" if close else ""


def _distinct(ranks: Sequence[object], why_ascending: str | None) -> tuple[int, ...]:
    """Return the ranks as a tuple, after checking that they are ints and distinct, and whether they ascend."""
    rule = "distinct; give each once"
    if why_ascending is not None:
        rule = f"distinct and strictly ascending{why_ascending}; give sorted(set(ranks))"
    seen: dict[int, int] = {}
    last = -1
    for index, rank in enumerate(ranks):
        if not is_int(rank):
            raise wrong_type(f"ranks[{index}]", rank, "ints")
        other = seen.setdefault(int(rank), index)
        fault = None
        if other != index:
            fault = f"repeats ranks[{other}]={rank}"
        elif why_ascending is not None and index and rank < last:
            fault = f"is less than ranks[{index - 1}]={last}"
        if fault:
            raise MeshArgumentError(f"ranks[{index}]={rank} {fault}: ranks must be {rule}{_ALIKE}")
        last = int(rank)
    return tuple(seen)


def _compact(ranks: tuple[int, ...]) -> Sequence[int]:
    """Return ascending, evenly spaced ranks as a range, so that equal ranks compare equal however they were given."""
    first, last = ranks[0], ranks[-1]
    spaced = range(first, last + 1, ranks[1] - first if len(ranks) > 1 else 1)
    return spaced if len(spaced) == len(ranks) and all(map(eq, ranks, spaced)) else ranks

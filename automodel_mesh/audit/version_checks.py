"""Reads checks of torch's version by the names of functions and constants: their code is often in another package."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Final

from automodel_mesh.audit.conditions import ALWAYS, OPERATORS, Condition, compared

VERSION_MAKERS: Final = frozenset(
    {"parse", "Version", "PkgVersion", "LooseVersion", "StrictVersion", "TorchVersion", "parse_version"}
)
"""Functions and classes that make a version of a text."""

VERSION_OF_TORCH: Final = re.compile(r"_?(get_)?(pytorch|torch)_version(_base|_str|_parsed)?", re.IGNORECASE)
"""Functions that return the version of torch."""

_AT_LEAST: Final = re.compile(r"greater_or_equal|at_least|min_version|(^|_)(ge|gte|min)(_|$)|geq|available|newer")
_BELOW: Final = re.compile(r"less_than|below|older|(^|_)(lt|before)(_|$)")
_IN_NAME: Final = re.compile(
    r"(?P<kind>.*torch.*?(greater_or_equal|at_least|ge|gte|geq|>=|less_than|lt)\w*?)"
    r"_?v?(?P<major>\d)_?(?P<minor>\d+)(_\d+)?$"
)

_IS_THERE: Final = re.compile(r"_*(is_|has_|have_)?(py)?torch_(is_)?(available|installed)|_*(has|have)_(py)?torch")
"""Functions and constants that tell whether torch is installed at all, which it is."""


def checked_by(name: str, arguments: Iterable[object]) -> Condition | None:
    """Read calls such as `is_torch_version(">=", "2.9")` and `is_torch_greater_or_equal("2.9")`.

    Args:
        name: the last name of the function.
        arguments: those of its arguments that are constants.

    Returns:
        The condition; `None` if the name does not say that it is one of torch's version.
    """
    texts = [one for one in arguments if isinstance(one, (str, tuple))]
    if texts and texts[0] in {"torch", "pytorch"}:
        texts, name = texts[1:], f"torch_{name}"
    if "torch" not in name.lower() or not texts:
        return named_after(name)
    if len(texts) > 1 and texts[0] in OPERATORS:
        return compared(str(texts[0]), texts[1])
    sign = re.match(r"[<>=!]=?", str(texts[0]))
    if sign is not None:
        return compared(sign.group(), str(texts[0])[sign.end() :].strip())
    if _BELOW.search(name):
        return compared("<", texts[0])
    return compared(">=", texts[0]) if _AT_LEAST.search(name) else None


@cache
def named_after(name: str) -> Condition | None:
    """Read names such as `is_torch_greater_or_equal_than_2_6`, `TORCH_GE_2_9` and `HAS_TORCH`; `None` for others."""
    match = _IN_NAME.fullmatch(name.lower())
    if match is None:
        return ALWAYS if _IS_THERE.fullmatch(name.lower()) else None
    sign = "<" if re.search(r"less_than|_lt", match["kind"]) else ">="
    return compared(sign, (int(match["major"]), int(match["minor"])))

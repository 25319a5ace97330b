"""Checks of the fields of configurations: each error names the field, its value and what is valid; without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from automodel_mesh.checks import check_each_name, check_size, listed, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Config = TypeVar("_Config", bound=DataclassInstance)

__all__ = [
    "as_dict",
    "brief",
    "check_at_least_one",
    "check_choice",
    "check_flags",
    "check_list_of_names",
    "check_names",
    "check_positive",
    "from_dict",
    "one_of_names",
]


def check_flags(config: DataclassInstance, *names: str) -> None:
    """Require that fields are exactly `True` or `False`.

    Args:
        config: The configuration.
        *names: Its fields.

    Raises:
        TypeError: A field is anything else; 0, 1 and "false" are no flags.
    """
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r} is of type {type(value).__name__}: give True or False")


def check_at_least_one(config: DataclassInstance, *names: str, optional: bool = False) -> None:
    """Require that fields are ints of at least 1.

    Args:
        config: The configuration.
        *names: Its fields.
        optional: Whether `None` is allowed.

    Raises:
        TypeError: A field is not an int, or is a bool, or is `None` and `optional` is false.
        ValueError: A field is less than 1.
    """
    for name in names:
        check_size(name, getattr(config, name), optional=optional)


def check_positive(name: str, value: object, unit: str, *, default: str) -> None:
    """Require that a value is `None`, or a number above 0 that is finite.

    Args:
        name: What it is called in messages.
        value: What was given.
        unit: What it counts.
        default: What `None` stands for.

    Raises:
        TypeError: The value is not a number, or is a bool.
        ValueError: The number is not above 0, or not finite.
    """
    wanted = f"give a number of {unit} above 0, or None for {default}"
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r} is of type {type(value).__name__}: {wanted}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} is not above 0 and finite: {wanted}")


def check_choice(config: DataclassInstance, name: str, choices: Iterable[object]) -> None:
    """Require that a field is one of some values, of the same type: `True` is not 1 here.

    Args:
        config: The configuration.
        name: Its field.
        choices: What is valid, in the order to list it.

    Raises:
        TypeError: The value has another type than every choice.
        ValueError: The value has the type of a choice and is none.
    """
    value = getattr(config, name)
    choices = list(choices)
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return
    known_type = any(type(value) is type(choice) for choice in choices)
    fault = "is not known" if known_type else f"is of type {type(value).__name__}"
    raise (ValueError if known_type else TypeError)(f"{name}={value!r} {fault}: give one of {one_of_names(choices)}")


def check_names(config: DataclassInstance, name: str) -> None:
    """Require that a field is `None`, or a list of strings that are not empty.

    Args:
        config: The configuration.
        name: Its field.

    Raises:
        TypeError: The field is something else, or holds something else.
        ValueError: The list or one of its strings is empty.
    """
    value = getattr(config, name)
    if value is not None:
        check_list_of_names(name, value)


def check_list_of_names(name: str, value: object) -> None:
    """Require that a value is a list of strings, none of them empty, and at least one.

    Args:
        name: The field, or a place in it, for the message.
        value: What was given for it.

    Raises:
        TypeError: The value is no list, tuple or other sequence, or holds something else than strings.
        ValueError: The list or one of its strings is empty.
    """
    check_each_name(name, listed(name, value, "a list of names, or None"))


def as_dict(config: DataclassInstance) -> dict[str, Any]:
    """Return the fields of a configuration by name; unlike `dataclasses.asdict` it copies no value.

    Args:
        config: The configuration.

    Returns:
        A new dict in the order of the fields; the values are those of the configuration.
    """
    return {field.name: getattr(config, field.name) for field in fields(config)}


def brief(config: DataclassInstance) -> str:
    """Print a configuration with the fields that are not at their defaults; all of them would drown a message.

    Args:
        config: The configuration.

    Returns:
        The text, such as `PipelineConfig(pp_schedule='gpipe')`.
    """
    told = (f"{item.name}={getattr(config, item.name)!r}" for item in fields(config) if _is_set(config, item))
    return f"{type(config).__name__}({', '.join(told)})"


def _is_set(config: DataclassInstance, item: Field[Any]) -> bool:
    return bool(getattr(config, item.name) != item.default)


def from_dict(kind: type[_Config], argument: str, values: Mapping[Any, Any]) -> _Config:
    """Make a configuration from a dict of its fields.

    Args:
        kind: The configuration's class.
        argument: What the dict is called in messages.
        values: Fields by name; what is left out has its default.

    Returns:
        The configuration.

    Raises:
        ValueError: A key is no field; the message has the nearest field and the list of all. Or a field refuses its
            value.
        TypeError: A field refuses the type of its value.
    """
    known = [field.name for field in fields(kind)]
    unknown = [key for key in values if key not in known]
    if unknown:
        found = "; ".join(f"{key!r}{nearest(key, known)}" for key in unknown)
        raise ValueError(f"{argument} has keys that {kind.__name__} has not: {found}. Its keys are {', '.join(known)}.")
    return kind(**values)


def one_of_names(choices: Iterable[object]) -> str:
    """Print choices as Python writes them, separated by commas.

    Args:
        choices: The valid values.

    Returns:
        The list, such as `'full', 'selective'`.
    """
    return ", ".join(map(repr, choices))

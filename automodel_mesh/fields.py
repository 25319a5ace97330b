"""Checks of the fields of configurations: each error names the field, its value and what is valid; without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from automodel_mesh.checks import check_each_name, check_size, listed, nearest, shown, wrong_type
from automodel_mesh.errors import MeshArgumentError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class _Checked(DataclassInstance, Protocol):
        def check(self) -> None: ...

    _Config = TypeVar("_Config", bound=DataclassInstance)
    _CheckedConfig = TypeVar("_CheckedConfig", bound=_Checked)

__all__ = [
    "as_dict",
    "brief",
    "check_at_least_one",
    "check_choice",
    "check_config",
    "check_flags",
    "check_list_of_names",
    "check_names",
    "check_positive",
    "from_dict",
    "is_config",
    "one_of_names",
]


def is_config(kind: type, value: object) -> bool:
    """Tell whether a value is a configuration of a class, or of the class of the same name in another package.

    Code that has NeMo AutoModel's own configurations can so pass them here. Such a class is a dataclass whose fields
    are all known here, or which has all that are known here: another version's has more or fewer.

    Args:
        kind: The class, a dataclass.
        value: The value.
    """
    if isinstance(value, kind):
        return True
    bases = (base for base in type(value).__mro__ if base.__name__ == kind.__name__ and is_dataclass(base))
    known = field_names(kind)
    return any(names and (names <= known or known <= names) for names in map(field_names, bases))


def field_names(kind: Any) -> set[str]:
    """Return the names of a configuration's fields, that of a class or of an instance."""
    return {field.name for field in fields(kind)}


def check_config(kind: type[_CheckedConfig], value: Any) -> None:
    """Check a configuration for which `is_config` is true, by the checks of the class here.

    Args:
        kind: The class.
        value: The configuration, of this class or of another package's. Fields that are not known here are not checked.

    Raises:
        TypeError: A field has a value of the wrong type.
        ValueError: A field has a value that is not valid.
    """
    if not isinstance(value, kind):
        given = {name: getattr(value, name) for name in field_names(kind) if hasattr(value, name)}
        value = kind(**given)
    value.check()


def check_flags(config: DataclassInstance, *names: str) -> None:
    """Require that fields are exactly `True` or `False`.

    Args:
        config: The configuration.
        *names: Its fields.

    Raises:
        TypeError: A field is anything else, such as 0, 1 or "false".
    """
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, bool):
            raise wrong_type(name, value, "True or False")


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
    """Require that a value is `None` or a finite number above 0.

    Args:
        name: The name of the value in messages.
        value: The value.
        unit: The unit of the number, in the plural.
        default: What `None` means.

    Raises:
        TypeError: The value is not a number, or is a bool.
        ValueError: The number is not above 0, or not finite.
    """
    wanted = f"a number of {unit} above 0, or None for {default}"
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(name, value, wanted)
    if not 0 < value < math.inf:
        raise MeshArgumentError(f"{name}={value} is not above 0 and finite: give {wanted}")


def check_choice(config: DataclassInstance, name: str, choices: Iterable[object]) -> None:
    """Require that a field is one of some values, of the same type: `True` is not 1 here.

    Args:
        config: The configuration.
        name: Its field.
        choices: The valid values, in the order in which messages list them.

    Raises:
        TypeError: No choice has the type of the value.
        ValueError: The value has the type of a choice, but is not one of them.
    """
    value = getattr(config, name)
    choices = list(choices)
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return
    if not any(type(value) is type(choice) for choice in choices):
        raise wrong_type(name, value, f"one of {one_of_names(choices)}")
    raise MeshArgumentError(f"{name}={shown(value)} is not known: give one of {one_of_names(choices)}")


def check_names(config: DataclassInstance, name: str) -> None:
    """Require that a field is `None`, or a list of at least one string, none of them empty.

    Args:
        config: The configuration.
        name: Its field.

    Raises:
        TypeError: The field is not a list, or an item is not a string.
        ValueError: The list or one of its strings is empty.
    """
    value = getattr(config, name)
    if value is not None:
        check_list_of_names(name, value)


def check_list_of_names(name: str, value: object) -> None:
    """Require that a value is a list of at least one string, none of them empty.

    Args:
        name: The name of the field or of an item in it, for the message.
        value: The value.

    Raises:
        TypeError: The value is not a list, tuple or other sequence, or an item is not a string.
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
    """Return a configuration as text, without the fields that are at their defaults: messages stay short.

    Args:
        config: The configuration.

    Returns:
        The text, such as `PipelineConfig(pp_schedule='gpipe')`.
    """
    told = (f"{item.name}={shown(getattr(config, item.name))}" for item in fields(config) if _is_set(config, item))
    return f"{type(config).__name__}({', '.join(told)})"


def _is_set(config: DataclassInstance, item: Field[Any]) -> bool:
    default = item.default if item.default_factory is MISSING else item.default_factory()
    return bool(getattr(config, item.name) != default)


def from_dict(kind: type[_Config], argument: str, values: Mapping[Any, Any]) -> _Config:
    """Make a configuration from a dict of its fields.

    Args:
        kind: The configuration's class.
        argument: The name of the dict in messages.
        values: Fields by name; a field that is left out has its default.

    Returns:
        The configuration.

    Raises:
        ValueError: A key is not a field; the message has the most similar field and the list of all. Or a value is not
            valid for its field.
        TypeError: A value has the wrong type for its field.
    """
    known = [field.name for field in fields(kind)]
    unknown = [key for key in values if key not in known]
    if unknown:
        found = "; ".join(f"{shown(key)}{nearest(key, known)}" for key in unknown)
        raise MeshArgumentError(
            f"{argument} has keys that {kind.__name__} has not: {found}. Its keys are {', '.join(known)}."
        )
    return kind(**values)


def one_of_names(choices: Iterable[object]) -> str:
    """Return choices as a list in text: the `repr` of each, separated by commas.

    Args:
        choices: The valid values.

    Returns:
        The text, such as `'full', 'selective'`.
    """
    return ", ".join(map(repr, choices))

"""The check of fields that hold a dtype; in a module of its own, because it imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from automodel_mesh.checks import wrong_type
from automodel_mesh.errors import MeshArgumentError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["check_dtype"]


def check_dtype(config: DataclassInstance, name: str) -> None:
    """Require that a field is `None`, a `torch.dtype` or the name of one, such as `"bfloat16"` or `"torch.float32"`.

    Args:
        config: The configuration.
        name: Its field.

    Raises:
        TypeError: The field is something else.
        ValueError: The field is a string that is not the name of a dtype.
    """
    value = getattr(config, name)
    if value is None or isinstance(value, torch.dtype):
        return
    wanted = 'a torch.dtype, its name, such as "bfloat16", or None'
    if not isinstance(value, str):
        raise wrong_type(name, value, wanted)
    if not _names_dtype(value):
        raise MeshArgumentError(f"{name}={value!r} is no dtype of torch: give {wanted}")


def _names_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name.removeprefix("torch."), None), torch.dtype)

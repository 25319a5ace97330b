"""Which torch releases are supported, which one is installed, and which era module is for it.

No other module of the project compares versions of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final, cast

import torch
from packaging.version import InvalidVersion, Version

from automodel_mesh.checks import wrong_type
from automodel_mesh.errors import MeshArgumentError, UnsupportedTorchError

MINIMUM_TORCH: Final = Version("2.6")
"""The oldest torch release this library supports."""

NEWEST_TESTED_TORCH: Final = Version("2.15.0")
"""The newest torch release that the tests have run on; a newer one is accepted if its markers are known."""

TORCH_VERSION: Final = Version(Version(torch.__version__).base_version)
"""The installed release: `dev`, `rc`, `a0+git` and `+cu130` builds of X count as X."""

ERAS: Final[Sequence[tuple[Version, str]]] = [
    (Version("2.6"), "since_2_06"),
    (Version("2.10"), "since_2_10"),
]
"""First release of each era, oldest first, and its module in `automodel_mesh.compat.eras`."""

_A_RELEASE: Final = "a release, such as '2.10'"


def torch_at_least(release: str) -> bool:
    """Return whether the installed torch is this release or a newer one.

    Args:
        release: a release number such as `"2.10"` or `"2.9.1"`.

    Returns:
        `True` for the release itself, all its development, candidate and vendor builds, and everything newer.
        The result is cached.

    Raises:
        TypeError: `release` is not a string.
        ValueError: `release` is not a version number.
    """
    if not isinstance(cast("object", release), str):
        raise wrong_type("release", release, _A_RELEASE)
    return _at_least(release)


@cache
def _at_least(release: str) -> bool:
    try:
        return Version(release) <= TORCH_VERSION
    except InvalidVersion:
        raise MeshArgumentError(f"release={release!r} is no version number: give {_A_RELEASE}") from None


def era_name(version: Version) -> str:
    """Return the name of the era module for a torch release.

    Args:
        version: a torch release.

    Returns:
        The name of a module in `automodel_mesh.compat.eras`.

    Raises:
        UnsupportedTorchError: `version` is older than `MINIMUM_TORCH`.
    """
    if version < MINIMUM_TORCH:
        raise UnsupportedTorchError(
            f"automodel-mesh found torch {torch.__version__}; it supports torch {MINIMUM_TORCH} and newer "
            f"(tested up to {NEWEST_TESTED_TORCH}). Install a newer torch: pip install 'torch>={MINIMUM_TORCH}'."
        )
    return [name for first, name in ERAS if first <= version][-1]

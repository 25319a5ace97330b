"""The arguments by which a user says which torch a command reads: WHAT, `--index-url` and `--cache`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from automodel_mesh.tracking.index import NEWEST, NIGHTLY, default_cache, read_release
from automodel_mesh.tracking.sources import (
    ACCEPTED,
    INSTALLED,
    Sources,
    SourcesError,
    Watch,
    ignore_progress,
    installed_torch,
    read_installed,
    read_path,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection


def add_index_options(parser: argparse.ArgumentParser) -> None:
    """Add `--index-url`, and `--cache` (see `cache_of`).

    Args:
        parser: that of a command.
    """
    parser.add_argument(
        "--index-url",
        metavar="URL",
        help="the package index to read releases from, or a folder that is one (default: PIP_INDEX_URL, "
        "UV_DEFAULT_INDEX or UV_INDEX_URL if set, else the public one)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="the folder that stores what was read of releases (default: AUTOMODEL_MESH_CACHE if set, else "
        "automodel-mesh in XDG_CACHE_HOME or ~/.cache)",
    )


def cache_of(options: argparse.Namespace) -> Path:
    """Return the folder of `--cache`, or the default one."""
    return default_cache() if options.cache is None else options.cache


def place_of(what: str) -> Path | None:
    """Find the torch that WHAT names on this machine.

    Args:
        what: `"installed"`, the path of a wheel or folder (see `read_path`), or a release (see `read_release`). An
            existing path is read as such even if its name is also a version.

    Returns:
        A wheel or a folder; `None` for a release, which is on a package index.

    Raises:
        SourcesError: no torch is installed, or `what` is a path that does not exist.
    """
    if what == INSTALLED:
        return installed_torch()
    path = None if what in {NEWEST, NIGHTLY} else _existing(what)
    if path is None and ("/" in what or "\\" in what or what.endswith(".whl")):
        raise SourcesError(f"{what!r} does not exist: {ACCEPTED}")
    return path


def read_sources(
    what: str,
    paths: Collection[str],
    *,
    index_url: str | None = None,
    cache: Path | None = None,
    watch: Watch = ignore_progress,
) -> Sources:
    """Read source files of the torch that WHAT names.

    Args:
        what: see `place_of`.
        paths: The files, as a wheel names them, such as `"torch/distributed/device_mesh.py"`.
        index_url: The package index for releases; see `read_release`.
        cache: The folder that stores what is read of releases; see `read_release`.
        watch: Called with each step.

    Returns:
        The version, where it was read, and those of the files that this torch has.

    Raises:
        SourcesError: `what` is none of these, or the torch cannot be read.
    """
    if what == INSTALLED:
        return read_installed(paths, watch)
    path = place_of(what)
    if path is not None:
        return read_path(path, paths, watch)
    return read_release(what, paths, index_url=index_url, cache=cache, watch=watch)


def _existing(what: str) -> Path | None:
    try:
        path = Path(what).expanduser()
        return path if what.strip() and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a null character, or the home of an unknown user
        return None

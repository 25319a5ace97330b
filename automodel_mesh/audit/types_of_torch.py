"""The classes of torch's values, as the newest release that declares them says."""

from __future__ import annotations

from functools import cache

from automodel_mesh.audit.lookup import all_releases


@cache
def type_of(path: str, *, called: bool) -> str:
    """Return the class of a value of torch, or of what calling it returns; empty if no release declares it."""
    found = (release.type_of(path, called=called) for release in reversed(all_releases()))
    return next(filter(None, found), "")

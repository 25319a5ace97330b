"""The error of an audit that cannot be made."""

from __future__ import annotations


class AuditError(ValueError):
    """A choice of releases, a path or a file that an audit cannot use; the message says what to give."""

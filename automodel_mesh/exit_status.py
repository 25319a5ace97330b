"""The exit statuses that the commands share."""

from __future__ import annotations

from typing import Final

PASSED: Final = 0
FAILED: Final = 1
"""A check has failed, or the program that was run has raised an error."""
UNUSABLE: Final = 2
"""The arguments are wrong, or there is nothing to work on; stderr says why."""
INTERRUPTED: Final = 130
"""Ctrl-C."""
PIPE_CLOSED: Final = 141
"""As of a program that SIGPIPE has ended."""

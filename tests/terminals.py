"""Runs a Python program with a terminal for its output, for tests of commands."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def on_a_terminal(
    program: str, arguments: Sequence[str], *, columns: int = 100, piped: bool = False
) -> tuple[int, str, str]:
    """Run a Python program whose stdout and stderr are a terminal.

    Args:
        program: its source.
        arguments: its command-line arguments.
        columns: the width of the terminal.
        piped: whether stdout is a pipe instead.

    Returns:
        The exit status, the output on the terminal, and the output through the pipe.
    """
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
    line = [sys.executable, "-c", program, *arguments]
    stdout = subprocess.PIPE if piped else theirs
    process = subprocess.Popen(line, cwd=ROOT, stdout=stdout, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    seen = _read_to_the_end(ours)
    os.close(ours)
    through_pipe = process.stdout.read().decode() if process.stdout else ""
    if process.stdout:
        process.stdout.close()
    return process.wait(), seen.decode().replace("\r\n", "\n"), through_pipe


def _read_to_the_end(terminal: int) -> bytes:
    seen = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # Linux raises EIO once the other side is closed
                raise
            return seen
        if not chunk:
            return seen
        seen += chunk

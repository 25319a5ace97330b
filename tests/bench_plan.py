"""The time of `automodel-mesh plan` for a million ranks, beside a Python that does nothing: `nox -s bench`."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.measuring import OURS, report, reported, time_of

PLAN = "-m automodel_mesh plan --world-size 1048576 --tp 8 --pp 16 --cp 2 --ep 64 --rank 654321"
NOTHING = "python -c pass"
COMMANDS = {OURS: PLAN.split(), NOTHING: ["-c", "pass"]}


@reported
@pytest.mark.parametrize("whose", list(COMMANDS))
def test_time_of_planning_a_million_ranks(benchmark: Any, whose: str) -> None:
    """The whole command is measured, from the start of the interpreter to its end."""
    command = [sys.executable, *COMMANDS[whose]]
    start = partial(subprocess.run, command, cwd=Path(__file__).parents[1], capture_output=True, check=True)
    start()  # bytecode and the disk's cache
    report(benchmark, [time_of(start) for _ in range(9)])

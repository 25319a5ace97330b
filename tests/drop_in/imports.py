"""Every module of NeMo AutoModel is imported, with its own mesh modules and with ours instead: the same ones stop.

`python -m tests.drop_in.imports ours` prints the modules that stop with our modules in place; or `theirs`.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
import warnings
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from automodel_mesh import replace_nemo_automodel
from tests.drop_in.names import load_data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.results import Row


def check() -> Iterator[tuple[Row, bool]]:
    """Import everything with both; see `python -m tests.drop_in`."""
    (total, ours), (everything, theirs) = started("ours"), started("theirs")
    reasons = load_data()["stops"].get(metadata.version("nemo-automodel"), {})
    unknown = {name: error for name, error in ours.items() if not any(reason in error for reason in reasons)}
    sys.stderr.writelines(f"{name}: ci_matrix/nemo.toml has no reason for {error}\n" for name, error in unknown.items())
    known = [reason for reason in reasons if any(reason in error for error in ours.values())]
    why = f"; the others: {', '.join(known)}" if known else ""
    row = {
        "what": "imports of all modules",
        "plain": f"{everything - len(theirs)} of {everything}",
        "ours": f"{total - len(ours)} of {total}{why}",
    }
    yield row, not unknown and (total, ours) == (everything, theirs)


def started(which: str) -> tuple[int, dict[str, str]]:
    """Import everything in a process of its own."""
    command = [sys.executable, "-m", "tests.drop_in.imports", which]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True, timeout=900
    )
    total, stopped = json.loads(done.stdout.splitlines()[-1])
    return total, stopped


def import_all(which: str) -> tuple[int, dict[str, str]]:
    """Import every module; return how many there are, and the error of each that stops."""
    warnings.simplefilter("ignore")  # NeMo AutoModel's and its dependencies' own
    if which == "ours":
        replace_nemo_automodel()
    stopped: dict[str, str] = {}

    def note(name: str) -> None:
        error = sys.exc_info()[1]
        stopped[name] = f"{type(error).__name__}: {error}"

    count = 0
    package = import_module("nemo_automodel")
    for found in pkgutil.walk_packages(package.__path__, "nemo_automodel.", onerror=note):
        count += 1
        try:
            import_module(found.name)
        except (Exception, SystemExit):  # noqa: BLE001 - whatever a module raises
            note(found.name)
    return count, stopped


if __name__ == "__main__":
    sys.stdout.write(f"{json.dumps(import_all(*sys.argv[1:]))}\n")

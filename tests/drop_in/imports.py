"""Every module of NeMo AutoModel is imported, with its own mesh modules and with ours instead: the same ones stop.

As a command:

    python -m tests.drop_in.imports       compares both; exits with 1 if they differ, or one stops for an unknown reason
    python -m tests.drop_in.imports ours  prints the modules that stop, with our modules in place; or `theirs`
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
import warnings
from importlib import import_module, metadata

from automodel_mesh import replace_nemo_automodel
from tests.drop_in.api import load_data


def main(arguments: list[str]) -> int:
    """Compare, or print what stops."""
    if arguments:
        sys.stdout.write(f"{json.dumps(import_all(*arguments))}\n")
        return 0
    total, ours = started("ours")
    everything, theirs = started("theirs")
    reasons = load_data()["stops"].get(metadata.version("nemo-automodel"), {})
    unknown = {name: error for name, error in ours.items() if not any(reason in error for reason in reasons)}
    sys.stdout.write(f"{total - len(ours)} of {total} modules are imported with ours in place\n")
    for reason, why in reasons.items():
        stopped = sum(reason in error for error in ours.values())
        sys.stdout.write(f"{stopped} stop at {reason}: {why}\n")
    if (total, ours) != (everything, theirs):
        sys.stdout.write(
            f"with their own {everything - len(theirs)} of {everything} are: {set(ours) ^ set(theirs)} differ\n"
        )
    for name, error in unknown.items():
        sys.stdout.write(f"{name} stops, and ci_matrix/nemo.toml has no reason for it: {error}\n")
    return 1 if unknown or (total, ours) != (everything, theirs) else 0


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
    sys.exit(main(sys.argv[1:]))

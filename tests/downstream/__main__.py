"""Runs a package's program on plain torch's meshes and on ours, and compares the results with what is expected.

python -m tests.downstream accelerate 2.9         exits with 1 if something is not as ci_matrix/downstream.toml says
python -m tests.downstream accelerate 2.9 record  also records the results in ci_matrix/results/, if all is as it says
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

from tests import results
from tests.downstream import table

SECONDS: Final = 900  # for a whole program, of which the checks have time limits of their own


def run(package: str, meshes: str) -> dict[str, str]:
    """Run a program in a process of its own, so that the plain one never imports this library."""
    command = [sys.executable, "-W", "ignore", "-m", f"tests.downstream.{package.replace('-', '_')}", meshes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=SECONDS)
    if done.returncode:
        sys.exit(f"the program of {package} ended with exit status {done.returncode}")
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(package: str, release: str, *options: str) -> int:
    """Run both, say what came of each check, and tell whether all is as expected."""
    plain, ours = (run(package, meshes) for meshes in table.MESHES)
    rows = [{"what": what, "plain": plain[what], "ours": ours[what]} for what in plain]
    unexpected = 0
    for row in rows:
        wrong = table.unexpected(package, release, row)
        unexpected += len(wrong)
        for meshes in table.MESHES:
            note = f", NOT EXPECTED: {wrong[meshes]}" if meshes in wrong else ""
            sys.stdout.write(f"{row['what']}, {meshes}: {row[meshes]}{note}\n")
    if "record" in options and not unexpected:
        results.record(f"downstream-{package}-{release}", table.find_run(package, release)["about"], rows)
    sys.stdout.write(f"{2 * len(rows) - unexpected} as expected, {unexpected} not\n")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

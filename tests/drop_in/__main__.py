"""Takes the steps of one session of `nox -s drop-in`, with nemo-automodel installed.

    python -m tests.drop_in 0.7.0-2.13 imports names         exits with 1 if something is not as it must be
    python -m tests.drop_in 0.7.0-2.13 imports names record  records what was found in ci_matrix/results/ too

A step is a module of this package with a function `check`, which yields what it found and whether that is right.
"""

from __future__ import annotations

import sys
from importlib import import_module

from tests import results


def main(session: str, *steps: str) -> int:
    """Take the steps, say what each found, and tell whether all is as it must be."""
    rows, wrong = [], 0
    for step in steps:
        if step == "record":
            continue
        for row, right in import_module(f"tests.drop_in.{step}").check():
            rows.append(row)
            wrong += not right
            note = "" if right else "NOT EXPECTED, "
            sys.stdout.write(f"{note}{row['what']}: with its own modules {row['plain']}; with ours {row['ours']}\n")
            sys.stdout.flush()
    if "record" in steps:
        results.record(f"drop-in-{session}", ["nemo-automodel"], rows)
    sys.stdout.write(f"{len(rows) - wrong} as expected, {wrong} not\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

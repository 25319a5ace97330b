"""Asks the installed torch which of many dotted names it has.

python -m tests.audit_proof.names < NAMES.json > FOUND.json    a list of names, and an object of true, false or null

A name is looked up as Python does: the longest prefix that can be imported, then attributes. What crashes is null, and
so is what is not there but below a class or another object, since instances may have it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from types import ModuleType


def has(name: str) -> bool | None:
    """Tell whether torch has a name; `None` if it cannot be told without an object."""
    first, *parts = name.split(".")
    found = importlib.import_module(first)
    path = first
    for part in parts:
        path = f"{path}.{part}"
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        if not isinstance(found, ModuleType):
            return None
        try:
            found = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name == path:
                return False
            raise
    return True


def look_up(names: list[str]) -> dict[str, bool | None]:
    """Look names up in forked processes; one that crashes has no answers after the name that crashed it."""
    found: dict[str, bool | None] = {}
    while names:
        read, write = os.pipe()
        if not (child := os.fork()):
            os.close(read)
            with os.fdopen(write, "w") as pipe:
                for name in names:
                    try:
                        answer = has(name)
                    except BaseException:  # noqa: BLE001 - whatever a module of torch raises
                        answer = None
                    pipe.write(f"{json.dumps(answer)}\n")
                    pipe.flush()
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            answers = [json.loads(line) for line in pipe]
        os.waitpid(child, 0)
        found |= dict(zip(names, answers, strict=False))
        if len(answers) < len(names):
            found[names[len(answers)]] = None
        names = names[len(answers) + 1 :]
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    importlib.import_module("torch")
    json.dump(look_up(json.load(sys.stdin)), sys.stdout, indent=1)

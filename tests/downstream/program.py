"""What the programs of the packages have in common: checks with names, each run on ranks of its own."""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from tests import tiny_llama
from tests.downstream import ranks
from tests.downstream.table import WORKS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Check:
    """One thing that a package does on meshes.

    Attributes:
        what: its name, as the compatibility page shows it.
        ranks: how many it runs on.
        function: each rank calls it with `plain` or `ours`; it raises if something is wrong.
        reference: returns, in one process, the losses that each rank must return.
    """

    what: str
    ranks: int
    function: Callable[[str], Any]
    reference: Callable[[], list[float]] | None = None


def main(checks: Sequence[Check], imports: Sequence[str]) -> None:
    """Run the checks on the meshes that the command line names, and print what came of each.

    Args:
        checks: the checks.
        imports: modules that are imported once, before ranks are forked.
    """
    which = sys.argv[1]
    warnings.simplefilter("ignore")  # the packages' own
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        for name in (*imports, *(["automodel_mesh.compat", "automodel_mesh.mesh"] if which == "ours" else [])):
            import_module(name)
    except Exception as error:  # noqa: BLE001 - that it cannot be imported is a result
        found = dict.fromkeys((check.what for check in checks), ranks.in_a_line(error))
    else:
        found = {check.what: outcome(check, which) for check in checks}
    sys.stdout.write(f"\n{json.dumps(found)}\n")


def outcome(check: Check, which: str) -> str:
    """Run a check, and return `works`, or what happened in a line."""
    try:
        first, *others = ranks.run(on_rank, check.ranks, check, which)
    except ranks.RankError as error:
        return str(error)
    if check.reference is None:
        return WORKS
    wanted = check.reference()
    if any(not tiny_llama.agree(first, other) for other in others):
        return "the ranks have different losses"
    return WORKS if tiny_llama.agree(first, wanted) else f"losses {first} in place of {wanted}"


def on_rank(check: Check, which: str) -> Any:
    """Run a check on a rank, which must not have imported this library if the meshes are plain torch's."""
    found = check.function(which)
    if which == "plain" and "automodel_mesh" in sys.modules:
        raise AssertionError("a rank with torch's own meshes has imported automodel_mesh")
    return found


def check_ranks(group: Any, wanted: Sequence[int], what: str) -> None:
    """Compare the ranks of a process group with those it must have, and use it."""
    found = dist.get_process_group_ranks(group)
    if found != [*wanted]:
        raise AssertionError(f"the group of {what} has the ranks {found} in place of {[*wanted]}")
    gathered: list[Any] = [None] * len(found)
    dist.all_gather_object(gathered, dist.get_rank(), group=group)
    if gathered != found:
        raise AssertionError(f"the group of {what} has the ranks {found}, and gathers from {gathered}")


def check_mesh(mesh: DeviceMesh, wanted: Sequence[int], what: str) -> None:
    """Compare the ranks that a mesh of one axis shows, and those of its group, with those it must have."""
    if mesh.mesh.tolist() != [*wanted]:
        raise AssertionError(f"the mesh of {what} has the ranks {mesh.mesh.tolist()} in place of {[*wanted]}")
    check_ranks(mesh.get_group(), wanted, what)

"""`automodel-mesh plan`: its arguments and exit status.

Exit status: 0 if the mesh is possible, 2 if it is not or the arguments are wrong (then stdout is empty, and stderr says
why and which sizes near these are possible), 130 after Ctrl-C.

The report goes to stdout: tables, with `--markdown` in Markdown, with `--json` one JSON document, whose keys
docs/how-to/plan.md describes. torch is not imported.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from automodel_mesh.arguments import whole_number
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.planning.arguments import SIZES, add_mesh_arguments, option, planned_mesh, sizes_of, strategy_of
from automodel_mesh.planning.document import plan_document
from automodel_mesh.planning.picture import draw
from automodel_mesh.planning.suggest import (
    CHOSEN_BY_DEFAULT,
    Request,
    suggest,
    suggestions_document,
    suggestions_table,
)
from automodel_mesh.tables import show
from automodel_mesh.terminal import tell, write_json
from automodel_mesh.topology.mesh_tables import axes_table, counts_table, rank_table

if TYPE_CHECKING:
    from automodel_mesh.tables import Table

PLANNED: Final = 0
IMPOSSIBLE: Final = 2

_SUGGESTIONS: Final = 10

_EPILOG: Final = """\
examples:
  automodel-mesh plan --world-size 64 --tp 8
  automodel-mesh plan --world-size 1024 --tp 8 --pp 4 --cp 2 --ep 16 --dp-replicate 2 --rank 37
  automodel-mesh plan --world-size 64 --tp 8 --picture mesh.svg --axes tp,dp_shard
  automodel-mesh plan --world-size 64 --tp 8 --suggest pp,cp
  automodel-mesh plan --world-size 64 --tp 8 --json | jq .process_groups

Exit status: 0 the mesh is possible, 2 it is not or the arguments are wrong (stderr says why, and which sizes are
possible if one of them is changed)."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its arguments.

    Args:
        commands: the return value of `ArgumentParser.add_subparsers`.
    """
    parser = commands.add_parser(
        "plan",
        help="say what a mesh needs before it runs: axes, nodes, process groups",
        description="Show the axes, the nodes that groups span and the process groups of a mesh. Needs no torch.",
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--world-size", type=whole_number(1), required=True, metavar="N", help="number of ranks")
    add_mesh_arguments(parser)
    parser.add_argument(
        "--gpus-per-node",
        type=whole_number(1),
        default=8,
        metavar="N",
        help="ranks on each node; consecutive ranks are on the same one (default: %(default)s)",
    )
    parser.add_argument("--rank", type=whole_number(0), metavar="RANK", help="also list the groups of this rank")
    parser.add_argument(
        "--suggest",
        nargs="?",
        const=(),
        type=_names_to_choose,
        metavar="SIZES",
        help="list sizes that fit, the best first: those named, such as tp,pp, from 2 up, or by default all of tp, pp "
        "and cp that are not given; the others are kept",
    )
    parser.add_argument(
        "--picture",
        type=_picture_file,
        metavar="FILE",
        help="also draw the mesh into this file, .svg or .png; needs automodel-mesh[plots]",
    )
    parser.add_argument(
        "--axes",
        default="",
        metavar="NAMES",
        help="the axes in the picture, with commas between (default: the native ones of more than one rank); those of "
        "the expert mesh are beside them",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON document")
    output.add_argument("--markdown", action="store_true", help="print Markdown")


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Args:
        options: the arguments that `add_parser` has added, parsed.

    Returns:
        The exit status; see the description of this module.
    """
    try:
        document, parts = _planned(options) if options.suggest is None else _suggested(options)
    except (MeshArgumentError, OSError, ImportError) as error:
        tell(str(error))
        return IMPOSSIBLE
    if options.json:
        write_json(document)
    else:
        show(parts, markdown=options.markdown)
    return PLANNED


def _planned(options: argparse.Namespace) -> tuple[dict[str, Any], list[str | Table]]:
    """Plan the mesh and draw it; return its JSON document, and its lines and tables."""
    planned = planned_mesh(options, options.world_size, ranks_per_node=options.gpus_per_node)
    parts: list[str | Table] = [planned.heading, axes_table(planned), counts_table(planned)]
    if options.rank is not None:
        if options.rank >= options.world_size:
            raise MeshArgumentError(f"--rank {options.rank}: give a rank from 0 to {options.world_size - 1}")
        parts.append(rank_table(planned, options.rank))
    if options.picture is not None:
        axes = [name.strip() for name in options.axes.split(",") if name.strip()]
        try:
            draw(planned, options.picture, axes)
        except ImportError as error:
            raise ImportError(f"--picture needs matplotlib: pip install 'automodel-mesh[plots]' ({error})") from error
    return plan_document(planned, options.rank), parts


def _suggested(options: argparse.Namespace) -> tuple[dict[str, Any], list[str | Table]]:
    """Find the best sizes that fit; return their JSON document and their table."""
    strategy = strategy_of(options)
    chosen = options.suggest or [
        name for name in CHOSEN_BY_DEFAULT if getattr(options, name) is None and strategy.supports(name)
    ]
    given = [option(name) for name in chosen if getattr(options, name) is not None]
    if given:
        raise MeshArgumentError(f"{', '.join(given)} is given: leave it out, or name other sizes to suggest")
    least = 2 if options.suggest else 1
    request = Request(strategy, options.world_size, options.gpus_per_node, sizes_of(options), chosen, least)
    found = suggest(request)[:_SUGGESTIONS]
    if not found:
        raise MeshArgumentError(
            f"no sizes fit {options.world_size} ranks with the sizes that are given: give fewer, or suggest others"
        )
    return suggestions_document(found), [suggestions_table(found)]


def _picture_file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in {".svg", ".png"}:
        raise argparse.ArgumentTypeError(f"{text!r}: give a file whose name ends in .svg or .png")
    return path


def _names_to_choose(text: str) -> tuple[str, ...]:
    """Read the argument of `--suggest`: names of sizes, with commas between."""
    names = tuple(f"{name.strip().replace('-', '_')}_size" for name in text.split(","))
    known = [name for name in SIZES if name != "dp_size"]
    for name in names:
        if name not in known or names.count(name) > 1:
            choices = ", ".join(option(name).removeprefix("--") for name in known)
            raise argparse.ArgumentTypeError(f"{text!r}: give names from {choices}, each once, with commas between")
    return names

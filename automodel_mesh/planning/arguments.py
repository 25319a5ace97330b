"""The arguments that describe a mesh - its strategy and sizes - and the plan that they ask for."""

from __future__ import annotations

import argparse
from typing import Final

from automodel_mesh.arguments import whole_number
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.planning.nearby import nearest_possible
from automodel_mesh.topology.plans import MeshPlan, plan
from automodel_mesh.topology.records import Strategy
from automodel_mesh.topology.sizes import ParallelismSizes
from automodel_mesh.topology.strategies import strategy_named

__all__ = ["SIZES", "add_mesh_arguments", "given_options", "option", "planned_mesh", "sizes_of", "strategy_of"]

SIZES: Final = {
    "tp_size": "tensor parallel size",
    "pp_size": "pipeline parallel size",
    "cp_size": "context parallel size",
    "ep_size": "expert parallel size; it uses the ranks of the other sizes",
    "dp_size": "data parallel size, replicas included (default: what fills the ranks)",
    "dp_replicate_size": "number of replicas inside the data parallel size",
}
"""The sizes that can be given, by field of `ParallelismSizes`, and what they mean."""


def add_mesh_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the arguments for the strategy and the sizes to a parser, or to a group of its arguments."""
    parser.add_argument("--strategy", metavar="NAME", help="its strategy (default: fsdp2)")
    for name, meaning in SIZES.items():
        parser.add_argument(option(name), type=whole_number(1), dest=name, metavar="N", help=meaning)


def option(name: str) -> str:
    """Return the option for a size."""
    return f"--{name.removesuffix('_size')}".replace("_", "-")


def given_options(options: argparse.Namespace) -> list[str]:
    """Return which of the options that `add_mesh_arguments` has added are given."""
    return [option(name) for name in ("strategy", *SIZES) if getattr(options, name) is not None]


def strategy_of(options: argparse.Namespace) -> Strategy:
    """Return the strategy that is given, or the default one.

    Raises:
        MeshArgumentError: there is no such strategy.
    """
    return strategy_named(options.strategy or "fsdp2")


def sizes_of(options: argparse.Namespace) -> ParallelismSizes:
    """Return the sizes that are given."""
    given = {name: getattr(options, name) for name in SIZES}
    return ParallelismSizes(**{name: value for name, value in given.items() if value is not None})


def planned_mesh(
    options: argparse.Namespace, world_size: int, *, ranks_per_node: int, world_option: str = "--world-size"
) -> MeshPlan:
    """Plan the mesh that the options ask for.

    Args:
        options: the parsed arguments.
        world_size: number of ranks, at least 1.
        ranks_per_node: number of ranks on each node, at least 1.
        world_option: what sets the number of ranks, for the message.

    Raises:
        MeshArgumentError: there is no such strategy, or the sizes do not fit; the message has sizes near these that do.
    """
    strategy, sizes = strategy_of(options), sizes_of(options)
    try:
        return plan(strategy, sizes, world_size, ranks_per_node=ranks_per_node)
    except MeshArgumentError as error:
        found = nearest_possible(strategy, sizes, world_size)
        names = {name: world_option if name == "world_size" else option(name) for name in found}
        lines = [f"\n  {names[name]} {' or '.join(map(str, values))}" for name, values in found.items()]
        possible = "".join(["\npossible, with one change:", *lines]) if lines else ""
        raise MeshArgumentError(f"{error}{possible}") from error

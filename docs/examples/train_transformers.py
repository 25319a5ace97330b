"""Trains a small Llama of Hugging Face transformers on any topology, and compares its losses with one process's.

    torchrun --standalone --nproc-per-node=8 docs/examples/train_transformers.py --dp-replicate 2 --tp 2

It runs on CPU and downloads nothing; without a launcher it is one process. The exit status is 0 if the losses agree, 1
if they do not, 2 after wrong arguments, and 3 where it cannot run.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from automodel_mesh import FSDP2Config, ParallelismSizes, compat
from automodel_mesh.config import DistributedSetup
from automodel_mesh.init_utils import initialize_distributed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training import Run

TOLERANCE = 1e-5  # relative: sums in another order differ by 1e-7 or so, another gradient by far more
LOSSES_DIFFER, CANNOT_RUN = 1, 3

WARNINGS_OF_TORCH = (
    "FSDP2-wrapped module .* returned a view tensor",  # the logits of tensor parallelism; nothing changes them in place
    "TypedStorage is deprecated",  # from torch's own writer of checkpoints
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, compare, and return the exit status."""
    options = read_arguments(arguments)
    obstacle = find_obstacle()
    if obstacle is None:
        return train_and_compare(options)
    # On all ranks: once the first has ended, torchrun ends the others, and that could be before rank 0 says it.
    sys.stderr.write(f"train_transformers.py cannot run here: {obstacle}\n")
    return CANNOT_RUN


def find_obstacle() -> str | None:
    """Say why this cannot run here, if it cannot."""
    if not compat.torch_at_least("2.9"):
        return (
            f"FSDP2 of torch {compat.TORCH_VERSION} cannot train on CPU ranks (2.6 fails, as a CPU stream records no "
            "events; 2.7 and 2.8 do not average gradients over gloo). Use torch 2.9 or newer."
        )
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed. Install the library with its extra: pip install '.[examples]'"
    return None


def train_and_compare(options: argparse.Namespace) -> int:
    """Train as the arguments say, then as one process does, and return the exit status."""
    from training import load, save, start, train  # noqa: PLC0415 - needs transformers: not before find_obstacle

    for message in WARNINGS_OF_TORCH:
        warnings.filterwarnings("ignore", message)
    info = initialize_distributed("gloo")
    run = start_run(options)
    if options.load is not None:
        load(run, options.load)
    first = run.step
    losses = torch.tensor(train(run, options.steps))
    if options.checkpoint is not None:
        save(run, options.checkpoint)
    alone = torch.zeros_like(losses)
    if info.is_main:
        alone = torch.tensor(train(start(options.seed), run.step)[first:])
        sys.stdout.write(f"{describe(run)}\n{compare(losses, alone, first)}\n")
        sys.stdout.flush()
    dist.broadcast(alone, src=0)  # so that all ranks end alike
    return 0 if agree(losses, alone) else LOSSES_DIFFER


def start_run(options: argparse.Namespace) -> Run:
    """Start a run on the topology that the arguments ask for."""
    from training import start, start_on  # noqa: PLC0415 - as above

    if options.device_mesh is not None:
        names, shape = zip(*options.device_mesh, strict=True)
        return start_on(init_device_mesh("cpu", shape, mesh_dim_names=names), options.seed)
    sizes = ParallelismSizes(dp_replicate_size=options.dp_replicate, cp_size=options.cp, tp_size=options.tp)
    single = FSDP2Config(mp_policy=MixedPrecisionPolicy())  # not in bfloat16, so that losses can be compared
    setup = DistributedSetup.build(single, sizes, activation_checkpointing=options.activation_checkpointing)
    return start(options.seed, setup)


def agree(losses: torch.Tensor, alone: torch.Tensor) -> bool:
    """Tell whether all losses are within the tolerance."""
    return torch.allclose(losses, alone, rtol=TOLERANCE, atol=0)


def describe(run: Run) -> str:
    """Name the axes of a run's mesh."""
    axes = [] if run.mesh is None else zip(run.mesh.mesh_dim_names or (), run.mesh.shape, strict=True)
    return f"Mesh of {dist.get_world_size()}: " + ", ".join(f"{name} {size}" for name, size in axes)


def compare(losses: torch.Tensor, alone: torch.Tensor, first: int) -> str:
    """Put the losses side by side, and say whether they agree."""
    rows = enumerate(zip(losses.tolist(), alone.tolist(), strict=True), start=first + 1)
    greatest = ((losses - alone).abs() / alone).max().item()
    return "\n".join(
        [
            "step   these ranks   one process",
            *(f"{step:4}   {ours:11.6f}   {theirs:11.6f}" for step, (ours, theirs) in rows),
            f"The losses {'agree' if agree(losses, alone) else 'DIFFER'}: by {greatest:.1e} at most, relative; "
            f"{TOLERANCE:.0e} is allowed.",
        ]
    )


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a small Llama on any topology, and compare with one process.")
    add = parser.add_argument
    add("--tp", type=int, default=1, help="tensor parallel ranks, which share 8 heads (%(default)s)")
    add("--cp", type=int, default=1, help="context parallel ranks, which share 16 tokens a sequence (%(default)s)")
    add("--dp-replicate", type=int, default=1, help="replicas; FSDP2 shards over the ranks left (%(default)s)")
    add("--activation-checkpointing", action="store_true", help="compute activations again in the backward pass")
    add("--device-mesh", type=read_mesh, metavar="AXIS=SIZE,...", help="a plain mesh instead, such as dp=4,tp=2")
    add("--steps", type=int, default=3, help="steps to take (%(default)s)")
    add("--seed", type=int, default=0, help="decides the first weights and the data (%(default)s)")
    add("--checkpoint", type=Path, metavar="FOLDER", help="save here after the last step")
    add("--load", type=Path, metavar="FOLDER", help="go on from what was saved here, on any topology")
    options = parser.parse_args(arguments)
    sizes = (options.dp_replicate, options.cp, options.tp)
    if options.device_mesh is not None and (sizes != (1, 1, 1) or options.activation_checkpointing):
        parser.error("--device-mesh stands in place of --tp, --cp, --dp-replicate and --activation-checkpointing")
    if options.steps < 1:
        parser.error(f"--steps is {options.steps}: take at least 1")
    return options


def read_mesh(text: str) -> list[tuple[str, int]]:
    """Read the names and sizes of axes: dp=4,tp=2."""
    axes = [axis.partition("=") for axis in text.split(",")]
    return [(name, int(size)) for name, _, size in axes]


if __name__ == "__main__":
    sys.exit(main())

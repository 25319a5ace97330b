"""A tiny Llama trains through NeMo AutoModel's own `FSDP2Manager`, on its mesh modules and with ours in their place.

`python -m tests.drop_in.training ours tp` prints the losses on one topology with our modules in place; or `theirs`.
With our modules the losses are those of one process that trains the whole model, to six digits. Where NeMo AutoModel's
own modules fail or hang is in ci_matrix/nemo.toml.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.pipelining import microbatch

from automodel_mesh import replace_nemo_automodel
from automodel_mesh.testing import RanksFailed, run_ranks
from tests import tiny_llama
from tests.drop_in.names import PACKAGE, load_data
from tests.tiny_llama import new_model, train

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.results import Row

RELEASE: Final = ".".join(metadata.version("torch").split(".")[:2])
SECONDS: Final = 120  # for the ranks; a run takes five where the machine is free


class Topology(NamedTuple):
    """The number of ranks, and the sizes asked for."""

    ranks: int
    sizes: dict[str, int]


TOPOLOGIES: Final = {
    "tp": Topology(4, {"tp_size": 2}),
    "hsdp": Topology(4, {"dp_replicate_size": 2}),
    "hsdp-tp": Topology(8, {"dp_replicate_size": 2, "tp_size": 2}),
    "cp": Topology(4, {"cp_size": 2}),
    # Meshes alone: a pipeline stage has an expert mesh of its own, which is a part of the world.
    "experts": Topology(4, {"pp_size": 2, "ep_size": 2}),
}


def check() -> Iterator[tuple[Row, bool]]:
    """Train on every topology with both; see `python -m tests.drop_in`."""
    for name, (ranks, sizes) in TOPOLOGIES.items():
        ours, theirs = started("ours", name), started("theirs", name)
        failure = expected_failure(name)
        right = agree(theirs, ours) if failure is None else isinstance(theirs, str) and bool(re.search(failure, theirs))
        asked = ", ".join(f"`{size}={number}`" for size, number in sizes.items())
        did = "expert groups" if name == "experts" else "training"
        row = {"what": f"{did} on {ranks} ranks: {asked}", "plain": shown(theirs), "ours": shown(ours)}
        yield row, right and agree(ours, reference(name))


def agree(some: list[float] | str, others: list[float] | str) -> bool:
    """Tell whether two runs gave the same losses, to six digits."""
    if isinstance(some, str) or isinstance(others, str):
        return False
    return tiny_llama.agree(some, others)


def shown(result: list[float] | str) -> str:
    """Print losses, or the last line of an error."""
    return result if isinstance(result, str) else ", ".join(f"{loss:.6f}" for loss in result)


def expected_failure(name: str) -> str | None:
    """Return how NeMo AutoModel's own modules fail on this torch, `None` if they work."""
    found: str | None = load_data()["fails_there"].get(RELEASE, {}).get(name)
    return found


def started(which: str, name: str) -> list[float] | str:
    """Run a topology in a process of its own, as modules can be replaced once only."""
    command = [sys.executable, "-m", "tests.drop_in.training", which, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10 * SECONDS)
    if done.returncode:
        return f"exit status {done.returncode}: {done.stderr[-500:]}"
    result: list[float] | str = json.loads(done.stdout.splitlines()[-1])
    return result


def run(which: str, name: str) -> list[float] | str:
    """Return the losses on a topology, which all ranks have alike, or how it failed."""
    warnings.simplefilter("ignore")  # NeMo AutoModel's and its dependencies' own
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not hasattr(microbatch, "BlockMask"):
        # nemo-automodel 0.7.0 takes it from there, and torch has it there from 2.10 on only: without this line its
        # package `components.distributed` cannot be imported on older releases.
        from torch.nn.attention.flex_attention import BlockMask  # noqa: PLC0415

        microbatch.BlockMask = BlockMask  # type: ignore[attr-defined]
    if which == "ours":
        replace_nemo_automodel()
    for module in (f"{PACKAGE}.fsdp2", "transformers"):  # before the ranks are forked
        import_module(module)
    topology = TOPOLOGIES[name]
    try:
        first, *others = run_ranks(
            sum_over_experts if name == "experts" else losses_of, topology.ranks, topology, timeout=SECONDS
        )
    except RanksFailed as error:
        return "; ".join(line.strip() for line in str(error).splitlines()[:2])
    if any(other != first for other in others) and name != "experts":
        return f"the ranks differ: {[first, *others]}"
    result: list[float] = first
    return result


def reference(name: str) -> list[float]:
    """Return the losses of one process."""
    warnings.simplefilter("ignore")
    if name == "experts":
        return [1.0]
    return train(new_model(), 0, 1, rate=tiny_llama.RATE * gradients_added(name))


def gradients_added(name: str) -> int:
    """Return how many times the gradient torch computes: up to 2.8, FSDP2 adds what the shards give over gloo."""
    if not load_data()["gradients_added"].get(RELEASE, False):
        return 1
    ranks, sizes = TOPOLOGIES[name]
    return ranks // sizes.get("tp_size", 1) // sizes.get("dp_replicate_size", 1)


# --- on each rank


def losses_of(topology: Topology) -> list[float]:
    """Train on the mesh of a topology."""
    nemo = import_nemo()
    config = nemo.config.FSDP2Config(mp_policy=MixedPrecisionPolicy())  # single precision, to compare losses
    context = nemo.mesh.MeshContext.build(config, nemo.mesh.ParallelismSizes(**topology.sizes))
    model = nemo.fsdp2.FSDP2Manager(config, context.device_mesh, context.moe_mesh).parallelize(new_model())
    data_parallel = nemo.mesh_utils.get_flat_mesh(context.device_mesh, "dp_cp")
    return train(model, data_parallel.get_local_rank(), data_parallel.size(), data_parallel.get_group())


def sum_over_experts(topology: Topology) -> list[float]:
    """Build the meshes, and add up a number for each rank of an expert group: 0 and 1 for both of each stage."""
    nemo = import_nemo()
    sizes = nemo.mesh.ParallelismSizes(**topology.sizes)
    context = nemo.mesh.MeshContext.build(nemo.config.FSDP2Config(), sizes)
    number = torch.tensor(float(dist.get_rank() % 2))
    dist.all_reduce(number, group=context.moe_mesh.get_group("ep"))
    return [number.item()]


def import_nemo() -> Any:
    """Return NeMo AutoModel's package `components.distributed`, with the modules that are used here."""
    for tail in ("config", "fsdp2", "mesh", "mesh_utils"):
        import_module(f"{PACKAGE}.{tail}")
    return import_module(PACKAGE)


if __name__ == "__main__":
    sys.stdout.write(f"{json.dumps(run(*sys.argv[1:]))}\n")

"""Training on our meshes: FSDP2, HSDP, tensor and context parallelism have the same results as one process.

The model processes each token alone, so splitting sequences (the axis `cp`) does not change its results. All ranks have
equally many tokens, so the mean of their losses is the loss over all tokens, and the mean of their gradients is its
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy, gelu

from automodel_mesh import (
    FSDP2Config,
    MeshContext,
    ParallelismSizes,
    compat,
    get_flat_mesh,
    get_fsdp_dp_mesh,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.device_mesh import DeviceMesh

FSDP2_IS_RIGHT_ON_CPU = compat.torch_at_least("2.9")

pytestmark = pytest.mark.skipif(
    not FSDP2_IS_RIGHT_ON_CPU,
    reason=f"FSDP2 of torch {compat.TORCH_VERSION} cannot train on CPU ranks: 2.6 fails, as a CPU stream "
    "records no events, 2.7 and 2.8 do not average gradients over gloo; it is right from 2.9 on",
)

if FSDP2_IS_RIGHT_ON_CPU:
    # The first DTensor of a process imports torch's compiler, which takes 2 s and more. This imports it
    # before the ranks are forked, once for all tests and not on each rank of each test.
    torch.compiler.reset()

AXES = ("dp_replicate", "dp_shard", "cp", "tp")
BATCH, SEQUENCE, VOCABULARY, WIDTH = 8, 8, 16, 8
STEPS, LEARNING_RATE = 2, 0.5


@dataclass(frozen=True)
class Sizes:
    """The size of each axis."""

    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int

    def all(self) -> tuple[int, ...]:
        """Return the sizes in the order of `AXES`."""
        return self.dp_replicate, self.dp_shard, self.cp, self.tp


STRATEGIES = {
    "fsdp": Sizes(1, 8, 1, 1),
    "fsdp-cp": Sizes(1, 4, 2, 1),
    "fsdp-tp": Sizes(1, 4, 1, 2),
    "fsdp-tp-cp": Sizes(1, 2, 2, 2),
    "hsdp": Sizes(2, 4, 1, 1),
    "hsdp-cp": Sizes(2, 2, 2, 1),
    "hsdp-tp": Sizes(2, 2, 1, 2),
    "hsdp-tp-cp": Sizes(2, 1, 2, 2),  # the parameters are sharded over the ranks of `cp` alone
}


@dataclass(frozen=True)
class Meshes:
    """The meshes that a training loop uses.

    Attributes:
        fsdp: the mesh for `fully_shard`: one axis, or (replicate, shard).
        tp: the tensor parallel axis, `None` without.
        loss: one axis of all ranks that have different tokens.
        batch_part: the part of the batch that this rank has: its index, and the number of parts.
        sequence_part: the part of each sequence that this rank has, in the same way.
    """

    fsdp: DeviceMesh
    tp: DeviceMesh | None
    loss: DeviceMesh
    batch_part: tuple[int, int]
    sequence_part: tuple[int, int]


class Block(nn.Module):
    """The feed-forward half of a transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Add the output of the two layers."""
        changed: torch.Tensor = hidden + self.down(gelu(self.up(self.norm(hidden))))
        return changed


class TokenModel(nn.Module):
    """A language model without attention: its output for a token depends on that token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Score every word of the vocabulary for each token."""
        scores: torch.Tensor = self.head(self.blocks(self.embed(tokens)))
        return scores


def root_mesh(sizes: Sizes) -> DeviceMesh:
    """Make a mesh with only the axes that this strategy needs."""
    axes = zip(AXES, sizes.all(), strict=True)
    needed = {name: size for name, size in axes if size > 1 or name == "dp_shard"}
    return compat.init_device_mesh("cpu", tuple(needed.values()), mesh_dim_names=tuple(needed))


def world_mesh(sizes: Sizes) -> DeviceMesh:
    """Make one axis of all ranks and split it into all four axes, those of size 1 too."""
    world = compat.init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("world",))
    return compat.unflatten(world, "world", sizes.all(), AXES)


def derive(mesh: DeviceMesh, sizes: Sizes, *, join: bool = False) -> Meshes:
    """Derive the meshes of a training loop; the one for HSDP by a slice, or by concatenating its two axes."""
    names = mesh.mesh_dim_names or ()
    shard = "dp_shard"
    if sizes.cp > 1:
        shard = "dp_shard_cp"
        compat.flatten(compat.slice_mesh(mesh, ("dp_shard", "cp")), shard)
    fsdp_names = (shard,) if sizes.dp_replicate == 1 else ("dp_replicate", shard)
    if join:
        fsdp = compat.concatenate([compat.slice_mesh(mesh, name) for name in fsdp_names])
    else:
        fsdp = compat.slice_mesh(mesh, fsdp_names)
    loss = compat.flatten(compat.slice_mesh(mesh, tuple(name for name in names if name in AXES[:3])), "loss")
    return with_parts(mesh, sizes, fsdp, compat.slice_mesh(mesh, "tp") if sizes.tp > 1 else None, loss)


def with_parts(mesh: DeviceMesh, sizes: Sizes, fsdp: DeviceMesh, tp: DeviceMesh | None, loss: DeviceMesh) -> Meshes:
    """Add to the meshes the part of the data that this rank has, by its coordinate in the mesh of all axes."""
    place = dict(zip(mesh.mesh_dim_names or (), compat.get_coordinate(mesh) or (), strict=True))
    return Meshes(
        fsdp=fsdp,
        tp=tp,
        loss=loss,
        batch_part=(
            place.get("dp_replicate", 0) * sizes.dp_shard + place["dp_shard"],
            sizes.dp_replicate * sizes.dp_shard,
        ),
        sequence_part=(place.get("cp", 0), sizes.cp),
    )


def new_model() -> TokenModel:
    """Make the model, with the same parameters in every process."""
    torch.manual_seed(0)
    return TokenModel().double()


def all_data() -> torch.Tensor:
    """Make the tokens of each step and the expected output for each: (2, steps, batch, sequence)."""
    tokens = torch.randint(VOCABULARY, (STEPS, BATCH, SEQUENCE), generator=torch.Generator().manual_seed(1))
    return torch.stack([tokens, (tokens + 1) % VOCABULARY])


def train(model: nn.Module, data: torch.Tensor, mean: Callable[[torch.Tensor], torch.Tensor]) -> list[float]:
    """Take some steps of plain gradient descent and return the loss of each."""
    losses = []
    for tokens, wanted in zip(*data, strict=True):
        loss = cross_entropy(model(tokens.flatten()), wanted.flatten())
        torch.autograd.backward(loss)
        for parameter in model.parameters():
            assert parameter.grad is not None
            local(parameter.detach()).sub_(local(parameter.grad), alpha=LEARNING_RATE)
            parameter.grad = None
        losses.append(mean(loss.detach()).item())
    return losses


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the local part of a tensor: arithmetic of DTensor would be right too, but takes seconds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def train_alone() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train on all data in this process; return the losses and the parameters after the last step."""
    model = new_model()
    losses = train(model, all_data(), lambda loss: loss)
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


def train_together(meshes: Meshes) -> tuple[list[float], dict[str, DTensor]]:
    """Train on this rank's part of the data; return the losses over all tokens and the sharded parameters."""
    model = new_model()
    for block in model.blocks:
        if meshes.tp is not None:
            parallelize_module(block, meshes.tp, {"up": ColwiseParallel(), "down": RowwiseParallel()})
        fully_shard(block, mesh=meshes.fsdp)
    fully_shard(model, mesh=meshes.fsdp)

    def mean(loss: torch.Tensor) -> torch.Tensor:
        group = compat.get_group(meshes.loss)
        dist.all_reduce(loss, group=group)
        return loss / group.size()

    (batch, batches), (sequence, sequences) = meshes.batch_part, meshes.sequence_part
    part = all_data().chunk(batches, dim=2)[batch].chunk(sequences, dim=3)[sequence]
    losses = train(model, part, mean)
    return losses, {name: sharded(parameter) for name, parameter in model.named_parameters()}


def sharded(parameter: nn.Parameter) -> DTensor:
    """Return a parameter as the DTensor that FSDP2 has made of it."""
    assert isinstance(parameter.data, DTensor)
    return parameter.data


def assert_trains_alike(meshes: Meshes) -> None:
    """Compare losses and parameters with those of one process, and check how the parameters are sharded."""
    losses, parameters = train_together(meshes)
    expected_losses, expected_parameters = train_alone()
    assert losses == pytest.approx(expected_losses, rel=1e-10)
    assert losses[-1] < 0.9 * losses[0]
    gathered = {name: parameter.full_tensor() for name, parameter in parameters.items()}
    torch.testing.assert_close(gathered, expected_parameters)
    for parameter in parameters.values():
        assert compat.get_root_mesh(parameter.device_mesh) is compat.get_root_mesh(meshes.fsdp)


def of_strategies(*names: str) -> pytest.MarkDecorator:
    """Run a test for each of these strategies."""
    return pytest.mark.parametrize("sizes", [STRATEGIES[name] for name in names], ids=names)


@of_strategies(*STRATEGIES)
@pytest.mark.ranks(8)
def test_training_on_slices_of_a_root_equals_one_process(sizes: Sizes) -> None:
    """Losses and parameters on slices of a root mesh equal one process's."""
    assert_trains_alike(derive(root_mesh(sizes), sizes))


@of_strategies("fsdp-tp", "fsdp-tp-cp", "hsdp-tp", "hsdp-tp-cp")
@pytest.mark.ranks(8)
def test_training_on_slices_of_an_unflattened_world_equals_one_process(sizes: Sizes) -> None:
    """Losses and parameters on slices of an unflattened world, with axes of size 1, equal one process's."""
    assert_trains_alike(derive(world_mesh(sizes), sizes))


@of_strategies("fsdp-tp", "fsdp-tp-cp", "hsdp-tp", "hsdp-tp-cp")
@pytest.mark.ranks(8)
def test_training_on_a_mesh_context_equals_one_process(sizes: Sizes) -> None:
    """Each of the four meshes that `get_fsdp_dp_mesh` returns trains as one process does, with tensor parallelism."""
    asked = ParallelismSizes(dp_replicate_size=sizes.dp_replicate, cp_size=sizes.cp, tp_size=sizes.tp)
    mesh = MeshContext.build(FSDP2Config(), asked).device_mesh
    assert mesh is not None
    fsdp, tp, loss = get_fsdp_dp_mesh(mesh), get_flat_mesh(mesh, "tp"), get_flat_mesh(mesh, "dp_cp")
    assert_trains_alike(with_parts(mesh, sizes, fsdp, tp, loss))


@pytest.mark.parametrize(
    ("make", "sizes"),
    [(root_mesh, STRATEGIES["hsdp-cp"]), (world_mesh, STRATEGIES["hsdp-tp-cp"])],
    ids=["root-hsdp-cp", "world-hsdp-tp-cp"],
)
@pytest.mark.ranks(8)
def test_training_on_concatenated_axes_equals_one_process(make: Callable[[Sizes], DeviceMesh], sizes: Sizes) -> None:
    """Losses and parameters on an HSDP mesh concatenated from a native and a flattened axis equal one process's."""
    assert_trains_alike(derive(make(sizes), sizes, join=True))


@pytest.mark.ranks(8)
def test_training_inside_pipeline_stages_equals_one_process() -> None:
    """Losses and parameters of two stages, on axes unflattened from the stage's slice, equal one process's."""
    sizes = Sizes(1, 2, 1, 2)
    root = compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("pp", "stage"))
    stage = compat.slice_mesh(root, "stage")
    assert_trains_alike(derive(compat.unflatten(stage, "stage", sizes.all(), AXES), sizes))


@pytest.mark.ranks(8)
def test_training_on_axes_of_two_unflattened_meshes() -> None:
    """A tensor parallel axis of one unflattened mesh works with FSDP axes of another one of the same root."""
    world = compat.init_device_mesh("cpu", (8,), mesh_dim_names=("world",))
    data = compat.unflatten(world, "world", (4, 2), ("batch", "tp"))
    parameters = compat.unflatten(world, "world", (2, 2, 2), ("dp_replicate", "dp_shard", "tp"))
    coordinate = compat.get_coordinate(data)
    assert coordinate is not None
    assert_trains_alike(
        Meshes(
            fsdp=compat.slice_mesh(parameters, ("dp_replicate", "dp_shard")),
            tp=compat.slice_mesh(data, "tp"),
            loss=compat.slice_mesh(data, "batch"),
            batch_part=(coordinate[0], 4),
            sequence_part=(0, 1),
        )
    )

"""A training run of a small Llama, sharded or whole: its steps, and its checkpoints for any topology."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tiny_loader import TinyCausalLM, find_axis
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

    from automodel_mesh.config import DistributedSetup

BATCH, SEQUENCE, VOCABULARY = 8, 16, 64
LEARNING_RATE = 0.3


def new_config() -> LlamaConfig:
    """Describe a Llama of 25,000 parameters, whose eight heads up to eight tensor parallel ranks can share."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=SEQUENCE,
        tie_word_embeddings=False,
        use_cache=False,
    )


@dataclass
class Run:
    """A training run.

    Attributes:
        model: the model, whole or sharded.
        optimizer: its optimizer.
        mesh: the mesh it is sharded over; `None` where it is whole.
        seed: decides the first weights and the data.
        step: number of steps taken, before the checkpoint it was loaded from too.
    """

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    mesh: DeviceMesh | None
    seed: int
    step: int = 0


def start(seed: int, setup: DistributedSetup | None = None) -> Run:
    """Start a run as a setup says, or on this process alone."""
    torch.manual_seed(seed)  # the same first weights on all ranks
    model = TinyCausalLM.from_config(new_config(), distributed_setup=setup)
    return Run(model, new_optimizer(model), None if setup is None else setup.device_mesh, seed)


def start_on(mesh: DeviceMesh, seed: int) -> Run:
    """Start a run on a mesh of torch's own."""
    torch.manual_seed(seed)
    model = TinyCausalLM.from_config(new_config(), device_mesh=mesh)
    return Run(model, new_optimizer(model), mesh, seed)


def new_optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    """Make the optimizer of a model."""
    # Not Adam: it would hide gradients that are too large by a factor, such as sums in place of means. And not foreach:
    # parameters that tensor parallelism leaves alone lie on another mesh than the rest, or on none.
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, foreach=False)


def train(run: Run, steps: int) -> list[float]:
    """Take some steps; return the loss of each, over the tokens of all ranks."""
    losses = []
    for _ in range(steps):
        tokens, wanted, positions = (own_part(run.mesh, whole) for whole in next_batch(run))
        logits = run.model(tokens, position_ids=positions).logits
        loss = cross_entropy(logits.flatten(0, 1), wanted.flatten())
        loss.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        losses.append(mean(run.mesh, loss.detach()))
        run.step += 1
    return losses


def own_part(mesh: DeviceMesh | None, whole: torch.Tensor) -> torch.Tensor:
    """Cut this rank's part out of a (batch, sequence); ranks that differ in `tp` alone have the same part."""
    part = whole
    for dim, axes in enumerate([("dp", "dp_shard"), ("cp",)]):
        axis = find_axis(mesh, *axes)
        if axis is not None:
            part = part.chunk(axis.size(), dim)[axis.get_local_rank()]
    return part


def mean(mesh: DeviceMesh | None, loss: torch.Tensor) -> float:
    """Average a loss over the ranks that have different tokens."""
    axis = find_axis(mesh, "dp_cp", "dp", "dp_shard")
    if axis is not None:
        dist.all_reduce(loss, group=axis.get_group())
        loss = loss / axis.size()
    return loss.item()


def next_batch(run: Run) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make tokens that are easy to learn, the token wanted after each, and their positions."""
    generator = torch.Generator().manual_seed(1000 * run.seed + run.step)
    positions = torch.arange(SEQUENCE).expand(BATCH, SEQUENCE)
    tokens = (torch.randint(VOCABULARY, (BATCH, 1), generator=generator) + 3 * positions) % VOCABULARY
    return tokens, (tokens + 3) % VOCABULARY, positions


def save(run: Run, folder: Path) -> None:
    """Save model, optimizer and step; each rank writes what no other one writes."""
    model, optimizer = get_state_dict(run.model, run.optimizer)
    dcp.save({"model": model, "optimizer": optimizer, "step": run.step}, checkpoint_id=folder)


def load(run: Run, folder: Path) -> None:
    """Load what was saved on this or any other topology; each rank reads what it needs."""
    model, optimizer = get_state_dict(run.model, run.optimizer)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "step": 0}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(run.model, run.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    run.step = state["step"]

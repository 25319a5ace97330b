"""A tiny Llama, and some steps of training whose losses are compared with those of one process."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

STEPS, BATCH, SEQUENCE, VOCABULARY = 4, 8, 16, 64
RATE: Final = 0.3


SIZES: Final = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": SEQUENCE,
    "tie_word_embeddings": False,
    "use_cache": False,
}
"""Of a configuration of transformers."""


def new_model() -> nn.Module:
    """Make the whole model, the same in every process."""
    transformers: Any = import_module("transformers")
    torch.manual_seed(0)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SIZES))
    return model


def shard(model: nn.Module, mesh: Any) -> None:
    """Make the model tensor parallel, as torch does it."""
    plan: dict[str, ParallelStyle] = {
        "model.layers.*.self_attn.[qkv]_proj": ColwiseParallel(),
        "model.layers.*.self_attn.o_proj": RowwiseParallel(),
        "model.layers.*.mlp.gate_proj": ColwiseParallel(),
        "model.layers.*.mlp.up_proj": ColwiseParallel(),
        "model.layers.*.mlp.down_proj": RowwiseParallel(),
    }
    parallelize_module(model, mesh, plan)


def logits_of(model: nn.Module, tokens: torch.Tensor) -> Any:
    """Call a model of transformers."""
    return model(input_ids=tokens).logits


def train(
    model: nn.Module,
    index: int,
    parts: int,
    group: Any = None,
    *,
    rate: float = RATE,
    optimizer: Any = None,
    call: Callable[[nn.Module, torch.Tensor], Any] = logits_of,
    gradients_added: bool = False,
) -> list[float]:
    """Take some steps on one part of a batch, and return the losses of the whole batch.

    Args:
        model: the model, or this rank's shards of it.
        index: which part this rank trains on.
        parts: the number of parts.
        group: the process group over which losses are added up.
        rate: the learning rate of SGD.
        optimizer: in place of SGD with that rate.
        call: returns the logits of a batch.
        gradients_added: the parts' gradients are added up, and not averaged.
    """
    batch = torch.randint(0, VOCABULARY, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(1))
    part = batch.chunk(parts)[index]
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=rate)
    losses: list[float] = []
    for _ in range(STEPS):
        logits = call(model, part)
        logits = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
        loss: Any = cross_entropy(logits[:, :-1].flatten(0, 1), part[:, 1:].flatten())
        optimizer.zero_grad()
        (loss / (parts if gradients_added else 1)).backward()
        optimizer.step()
        mean = loss.detach().clone()
        if group is not None:
            dist.all_reduce(mean, group=group)
        losses.append(mean.item() / parts)
    return losses


def agree(some: Sequence[float], others: Sequence[float]) -> bool:
    """Tell whether two runs gave the same losses, to six digits."""
    return all(math.isclose(one, other, rel_tol=1e-6) for one, other in zip(some, others, strict=True))


def reference() -> list[float]:
    """Return the losses of one process that trains the whole model."""
    return train(new_model(), 0, 1)

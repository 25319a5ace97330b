"""Attention over a sequence that lies on several ranks: each gathers all keys and values, for its own queries.

Gathering is the simplest kind of context parallelism. Ring attention moves the keys and values in steps instead, so
that no rank ever holds all of them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

SEQUENCE = 2  # the dim of (batch, heads, sequence, width of a head)


def register_context_attention(cp: DeviceMesh) -> str:
    """Make the attention of an axis known to transformers; return the name to ask for it by."""
    AttentionInterface.register("context_attention", partial(attend, cp.get_group()))
    return "context_attention"


def attend(
    group: ProcessGroup,
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from this rank's tokens to all tokens up to them; sequences must have no padding."""
    key, value = Gather.apply(torch.stack([key, value]), group).unbind()
    first = group.rank() * query.size(SEQUENCE)
    positions = torch.arange(first, first + query.size(SEQUENCE), device=query.device)
    causal = positions[:, None] >= torch.arange(key.size(SEQUENCE), device=query.device)
    grouped = query.size(1) != key.size(1)
    output = scaled_dot_product_attention(query, key, value, attn_mask=causal, scale=scaling, enable_gqa=grouped)
    return output.transpose(1, 2).contiguous(), None


class Gather(torch.autograd.Function):
    """Joins the sequence's parts of all ranks; backwards, each rank gets the sum of its part's gradients."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        """Join keys and values, stacked: (2, batch, heads, part of the sequence, width)."""
        ctx.group = group
        parts = [torch.empty_like(part) for _ in range(group.size())]
        dist.all_gather(parts, part.contiguous(), group=group)
        return torch.cat(parts, dim=1 + SEQUENCE)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Add up the gradients of all ranks and keep this rank's part."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total.chunk(ctx.group.size(), dim=1 + SEQUENCE)[ctx.group.rank()], None

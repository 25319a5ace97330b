"""`MoEParallelizerConfig`: how a model with experts is sharded and checkpointed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from automodel_mesh.dtypes import check_dtype
from automodel_mesh.fields import as_dict, check_flags
from automodel_mesh.keywords import suggest_keywords

if TYPE_CHECKING:
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

__all__ = ["MoEParallelizerConfig"]


@suggest_keywords
@dataclass
class MoEParallelizerConfig:
    """How a model with experts is sharded and checkpointed.

    Fields can be changed. They are checked when the configuration is used, by `check`.
    """

    ignore_router_for_ac: bool = True
    """Whether the router's decisions are kept when activations are recomputed. Recomputed ones can send tokens to other
    experts, which torch's checkpointing refuses. By default `True`."""

    reshard_after_forward: bool = False
    """Whether the parameters of a block are freed between forward and backward. By default `False`."""

    lm_head_precision: torch.dtype | str | None = None
    """The dtype that the head computes in, a `torch.dtype` or its name. By default `None`: the model's."""

    wrap_outer_model: bool = True
    """Whether the model around the blocks is sharded too, as one unit. By default `True`."""

    mp_policy: MixedPrecisionPolicy | None = None
    """The `torch.distributed.fsdp.MixedPrecisionPolicy` for `fully_shard`. By default `None`: that of the strategy."""

    def check(self) -> None:
        """Refuse values that are not valid.

        Raises:
            TypeError: a field has a value of the wrong type.
            ValueError: a field has a value that is not valid; the message lists the valid ones.
        """
        check_flags(self, "ignore_router_for_ac", "reshard_after_forward", "wrap_outer_model")
        check_dtype(self, "lm_head_precision")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, their values as they are."""
        return as_dict(self)
